"""`photoflux <command>`: every step of the pipeline, and what people do around it, from a shell."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from photoflux import screen
from photoflux.errors import PhotoFluxError
from photoflux.manifest import write_json
from photoflux.params import STEP_PARAMS
from photoflux.params.files import load_params
from photoflux.params.resolve import STEPS

COMMANDS = {
    "configure": ("photoflux.steps.configure", "settle the parameters of all steps, and say what stands against them"),
    "fetch_champion": ("photoflux.steps.fetch_champion", "fetch the champion of a model, for evaluate"),
    "generate": ("photoflux.generate", "draw pictures with a registered model"),
    "keys": ("photoflux.vault.commands", "make the key of this machine, or move all keysets to a new one"),
    "label": ("photoflux.label", "label generated pictures by hand and make a judge card"),
    "pretrain": ("photoflux.pocket.pretrain", "train the pocket base and its judges from a seed"),
    "sign-off": ("photoflux.sign_off", "answer for a run that the bias audit left open, and register its model"),
    "samples": ("photoflux.pocket.photosets", "draw a sample photo set of the pocket world"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a person's mistake ends in one sentence on stderr and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    screen.set_up()
    try:
        if words and words[0] in COMMANDS:
            module = importlib.import_module(COMMANDS[words[0]][0])
            return int(module.main(words[1:]) or 0)
        if words[:1] == ["validate"] and "--validated" not in words:
            return _check_folder(words[1:])
        return _run_step(_parser().parse_args(words))
    except PhotoFluxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {_os_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="photoflux", description=__doc__)
    commands = parser.add_subparsers(dest="step", required=True, metavar="command")
    for step in STEPS:
        _add_step(commands.add_parser(step, help=_first_line(_step(step))), step)
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def _add_step(command: argparse.ArgumentParser, step: str) -> None:
    for parameter in _paths(_step(step)):
        required = parameter.default is inspect.Parameter.empty and not _is_param(step, parameter.name)
        command.add_argument(f"--{parameter.name}", required=required, type=_argument_type(parameter))
    command.add_argument("--params", type=Path, default=Path("params.yaml"), help="the file of defaults")
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change one parameter")
    command.add_argument("--key", default="plain://demo", help="key URI that seals this step's artifacts")
    command.add_argument("--metrics", type=Path, help="also write the metrics to this JSON file")


def _run_step(args: argparse.Namespace) -> int:
    run = _step(args.step)
    overrides = dict(_assignment(text) for text in args.set)
    params = load_params(args.step, path=args.params, overrides=overrides)
    named = [p.name for p in _paths(run)]
    given = {name: getattr(params, name) for name in named if _is_param(args.step, name)}
    given |= {name: getattr(args, name) for name in named if getattr(args, name) is not None}
    with screen.progress_bar(args.step):
        result = run(**given, params=params, key=args.key)
    if args.metrics:
        write_json(args.metrics, result.metrics)
    print(json.dumps({name: round(value, 4) for name, value in result.metrics.items()}))
    return 0


def _check_folder(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="photoflux validate", description="Judge a folder of photos.")
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    args = parser.parse_args(words)
    from photoflux.steps.validate import validate_folder

    with screen.progress_bar("looking at the photos"):
        verdict = validate_folder(args.photos, params=load_params("validate", path=args.params))
    print(json.dumps(verdict, ensure_ascii=False) if args.json else _readable(verdict))
    return 0 if verdict["verdict"] != "reject" else 1


def _readable(verdict: dict[str, Any]) -> str:
    lines = [f"{verdict['verdict'].upper()}  score {verdict['score']} of 100"]
    for photo in verdict["photos"]:
        reasons = "; ".join(reason["message"] for reason in photo["reasons"])
        lines.append(f"  {photo['status']:6} {photo['file']}  {reasons}")
    return "\n".join([*lines, *(f"  - {advice}" for advice in verdict["advice"])])


def _step(name: str) -> Callable[..., Any]:
    run: Callable[..., Any] = importlib.import_module(f"photoflux.steps.{name}").run
    return run


def _paths(run: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(run).parameters.values() if p.name not in ("params", "key", "sign_off")]


def _is_param(step: str, name: str) -> bool:
    """Whether what a step is given by that name has a default among its parameters."""
    return name in STEP_PARAMS[step].model_fields


def _argument_type(parameter: inspect.Parameter) -> type:
    return str if parameter.annotation in ("str", str) else Path


def _assignment(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise PhotoFluxError(f"--set {text}: write NAME=VALUE")
    return name, value


def _first_line(run: Callable[..., Any]) -> str:
    return (run.__doc__ or "").strip().split("\n")[0]


def _os_sentence(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    hint = "; free some space and run the command again" if error.errno == 28 else ""
    return f"{where}{error.strerror or error}{hint}"


if __name__ == "__main__":
    raise SystemExit(main())
