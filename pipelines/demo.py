"""`make demo`: the sample photos through the whole pipeline, then four pictures of the subject.

With `--bad` an over-trained recipe is run instead, to see the gate refuse it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from photoflux import screen
from photoflux.errors import PhotoFluxError
from photoflux.settings import get_settings
from pipelines import run

SAMPLES = Path("data/samples/dog")
OVERTRAINED = ("finetune_lr=0.01", "finetune_preservation=0", "finetune_select=last", "finetune_ema=0")
PROMPTS = ("a photo of sks dog on the beach", "a cartoon of sks dog in the meadow")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: the run ended with the verdict this demonstration is about; else what the run gave."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo", description=__doc__)
    parser.add_argument("--bad", action="store_true", help="an over-trained recipe: the gate must say FAIL")
    args = parser.parse_args(argv)
    screen.set_up()
    if args.bad:
        words = [word for change in OVERTRAINED for word in ("--set", change)]
        return run.main([*_photos("demo-bad"), "--require", "FAIL", *words])
    code = run.main([*_photos("demo"), "--require", "PASS"])
    return code or _generate()


def _photos(name: str) -> list[str]:
    subject = ["--class-noun", "dog", "--subject", "dog", "--consent", "sample"]
    return ["--photos", str(SAMPLES), "--name", name, *subject]


def _generate() -> int:
    from photoflux.generate import generate

    folder = get_settings().state_dir / "demo"
    how: dict[str, Any] = {"n": 2, "size": "512x512", "fmt": "png", "style": "none", "out_dir": folder}
    try:
        with screen.progress_bar("drawing"):
            for number, prompt in enumerate(PROMPTS):
                generate("demo@champion", prompt, seed=number, **how)
    except PhotoFluxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'pictures':8} {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
