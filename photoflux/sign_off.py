"""`photoflux sign-off`: a person signs for the findings that a run's audit left open, and its model is registered."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from photoflux.errors import InputError
from photoflux.manifest import write_json
from photoflux.params import RegisterParams
from photoflux.runs import load_run, read_document, save_run
from photoflux.settings import get_settings
from photoflux.signing import REASON_MIN_CHARS, SignOff, open_findings
from photoflux.steps import register


def sign_run(folder: Path, sign_off: SignOff) -> dict[str, Any]:
    """Register the model of the finished run in `folder`, add it to the run's record, and return the receipt."""
    run = load_run(folder)
    needed = (("finetune", "adapter"), ("gate", "decision"), ("evaluate", "evaluation"), ("audit", "audit"))
    missing = [step for step, name in needed if name not in run.artifacts.get(step, {})]
    if missing:
        raise InputError(
            f"run {run.id} has no result of {missing[0]}: it did not get as far as a decision, or its files were deleted"
        )
    params = RegisterParams(name=run.params["register_name"], experiment=run.params["register_experiment"])
    outputs = {name: folder / "artifacts" / "register" / name for name in ("card", "receipt")}
    inputs = [folder / run.artifacts[step][name] for step, name in needed]
    register.run(*inputs, **outputs, params=params, key=str(run.params["key"]), sign_off=sign_off)
    write_json(
        folder / "sign-off.json", {"by": sign_off.by, "reason": sign_off.reason, "findings": list(sign_off.findings)}
    )
    paths = {name: str(file.relative_to(folder)) for name, file in outputs.items()}
    run = replace(run, artifacts={**run.artifacts, "register": paths})
    save_run(run, folder)
    return read_document(run, folder, "register", "receipt") or {}


def main(argv: Sequence[str]) -> int:
    """`photoflux sign-off RUN`: without `--by` it lists what is open."""
    parser = argparse.ArgumentParser(prog="photoflux sign-off", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", help="id of the run, or its folder")
    parser.add_argument(
        "--by", default="", help="who answers for the model; without, what is open is told and nothing is registered"
    )
    parser.add_argument(
        "--reason", default="", help=f"why the model may be used, in at least {REASON_MIN_CHARS} characters"
    )
    parser.add_argument(
        "--finding", action="append", default=[], metavar="RULE", help="a rule that is open; each has to be named"
    )
    args = parser.parse_args(argv)
    folder = Path(args.run) if "/" in args.run else get_settings().runs_dir / args.run
    decision = read_document(load_run(folder), folder, "gate", "decision")
    if decision is None:
        raise InputError(f"{folder}: this run has no decision")
    if not args.by:
        found = open_findings(decision).items()
        how_to_sign = (
            "to answer for it give --by, --reason, and --finding for each"
            if decision["sign_off_possible"]
            else "nobody can sign for it"
        )
        print(
            "\n".join(
                [f"verdict  {decision['verdict']}: {how_to_sign}", *(f"- {rule}: {message}" for rule, message in found)]
            )
        )
        return 0
    receipt = sign_run(folder, SignOff(args.by, args.reason, tuple(args.finding)))
    print(f"model    {receipt['name']} version {receipt['version']}, @{receipt['alias']}: {receipt['why']}")
    return 0
