"""`python -m pipelines.run --photos DIR --class-noun dog`: photos in, a verdict and an adapter out."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from photoflux.errors import InputError, PhotoFluxError
from photoflux.params import MODEL_NAME
from photoflux.params.resolve import assignment
from photoflux.photos.gather import readable
from photoflux.runs import Run, State, read_document, sentence
from photoflux.settings import get_settings
from photoflux.steps.import_photos import expand_home
from pipelines.orchestrators import LocalOrchestrator
from pipelines.watch import follow

LEFT_OUT_LINE = re.compile(r"\]: (left out, .*)$", re.MULTILINE)
"""What the import logs of files that are no photos."""


def main(argv: Sequence[str] | None = None) -> int:
    """Submit one run here, show it and say how it ended: 0 with a verdict, 2 without one, 130 interrupted.

    With `--require PASS`, another verdict gives 3.
    """
    args = _parser().parse_args(argv)
    try:
        return _run(args, Console(soft_wrap=True))
    except (PhotoFluxError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace, console: Console) -> int:
    orchestrator = LocalOrchestrator(runs_dir=get_settings().runs_dir, reuse=args.reuse)
    signal.signal(signal.SIGTERM, _interrupt)
    ref = orchestrator.submit(parameters_of(args))
    try:
        console.print(f"run {ref.id}", highlight=False)
        run = follow(lambda: orchestrator.status(ref), console, logs=Path(ref.where) / "logs")
    except KeyboardInterrupt:
        orchestrator.cancel(ref)
        print("cancelled: every process of the run was ended and nothing half-made was kept", file=sys.stderr)
        return 130
    return print_outcome(run, Path(ref.where), require=args.require)


def parameters_of(args: argparse.Namespace) -> dict[str, Any]:
    """The parameters that the command line sets, by their names in the pipeline. Raises InputError."""
    if any("\ud800" <= letter <= "\udfff" for letter in args.photos or ""):
        raise InputError(
            f"{readable(args.photos)}: its path is not UTF-8, which records of runs are; rename the folder"
        )
    named = {
        "import_photos_source": args.photos,
        "import_photos_class_noun": args.class_noun,
        "register_name": args.name,
    }
    named |= {"import_photos_trigger": args.trigger, "import_photos_consent": args.consent}
    named |= {"import_photos_subject_id": args.subject, "base": args.base}
    chosen = {name: value for name, value in named.items() if value is not None}
    chosen |= dict(assignment(text) for text in args.set)
    chosen = {name: _relative_path(value) for name, value in chosen.items()}
    if re.fullmatch(MODEL_NAME, chosen.get("register_name", "")):  # else it is refused, and by its own name
        chosen.setdefault("import_photos_subject_id", chosen["register_name"].replace("_", "-"))
    return chosen


def print_outcome(run: Run, folder: Path, *, require: str = "") -> int:
    """Print where everything is, the verdict and, last, what went wrong; returns the exit code."""
    for step in run.steps:
        if report := run.artifacts.get(step.name, {}).get("report"):
            print(f"{'report':8} {step.name:9} {_display_path(folder / report)}")
    if left_out := _left_out(folder / "logs" / "import_data.log"):
        print(f"{'note':8} {left_out}")
    if run.error or run.state is not State.succeeded:
        where = folder / "logs" / f"{run.error.step}.log" if run.error and run.error.step else folder / "logs"
        print(f"{'log':8} {_display_path(where)}")
        sys.stdout.flush()
        print(f"error: {run.error.message if run.error else run.state}", file=sys.stderr)
        return 2
    print("\n".join(_verdict_lines(run, folder)))
    if require in ("", run.verdict):
        return 0
    sys.stdout.flush()
    print(f"error: the verdict is {run.verdict}, {require} was required", file=sys.stderr)
    return 3


def _left_out(log: Path) -> str:
    """What the import said of files that are no photos, or nothing."""
    lines = LEFT_OUT_LINE.findall(log.read_text(errors="replace")) if log.is_file() else []
    return lines[-1] if lines else ""


def _verdict_lines(run: Run, folder: Path) -> list[str]:
    decision = read_document(run, folder, "gate", "decision") or {"reasons": []}
    against = [f"         - {r['message']}" for r in decision["reasons"] if r["verdict"] != "PASS"]
    lines = [*against, f"{'verdict':8} {run.verdict}"]
    if model := read_document(run, folder, "register", "receipt"):
        lines.insert(0, f"{'model':8} {model['name']} version {model['version']}, @{model['alias']}")
    return lines


def _relative_path(value: str) -> str:
    """A path below the working directory as it is called from here, since the record of a run moves with both; else the value."""
    path = expand_home(Path(value))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else value


def _display_path(path: Path) -> str:
    """The path as a person here would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.run", description=__doc__)
    parser.add_argument("--photos", help="folder of photos, dvc:REPO@REV:PATH or blob:SET_ID")
    parser.add_argument("--class-noun", help="what the subject is: dog, mug, person, …")
    parser.add_argument("--name", help="name of the registered model; the subject's id unless given")
    parser.add_argument("--subject", help="id of the subject; the model's name, or else made of --photos")
    parser.add_argument("--base", help="base model: a name in models/ or the path of a spec .yaml")
    parser.add_argument("--trigger", help="rare word that stands for the subject in prompts")
    parser.add_argument("--consent", help="on what ground the photos may be used")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any pipeline parameter")
    parser.add_argument("--reuse", action="store_true", help="take from earlier runs what a step would make again")
    parser.add_argument("--require", default="", metavar="VERDICT", help="exit with 3 unless the gate says so")
    return parser


if __name__ == "__main__":
    sys.exit(main())
