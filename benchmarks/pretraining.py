"""The pocket base and its judges on one GPU in ten minutes: every stage, then what came out of it, measured and drawn.

    python -m benchmarks.pretraining --out build/pretraining --compile       # on a GPU
    python -m benchmarks.pretraining --out build/pretraining --smoke         # every part of it in a minute, on any machine

Scenes are drawn while the autoencoder trains, and the judges learn beside the flow. With `--compile` a process of its own compiles
what the later stages will need while the first ones run. Whatever is interrupted goes on where it was: give the same folders again.

In `--out`: the base in `weights.tar.00`, `.01`, … of at most 15 MiB each (`cat weights.tar.* | tar -x` makes `pocket/` and `pocket.yaml`),
`pretraining.json` with the figures and the machine, a grid of pictures for 4 steps and for 24, and the log.
The starting adapter is trained on the base as it was exported, which CPUs do as fast: `pretrain --stages start`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.pocket_base import evaluate_base, machine, table
from photoflux.manifest import write_json
from photoflux.pocket.pretrain import stage_minutes

MINUTES = {"vae": 2.3, "judges": 1.2, "flow": 4.2, "distil": 1.0, "adapter": 0.4}
"""On an H100, with 200,000 scenes: about nine and a half minutes in all, since the judges learn beside the flow."""
PART_BYTES = 15 * 2**20
LOG = "pretraining.log"


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    out, began = options.out, time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    marks: dict[str, float] = {}

    def run(*stages: str) -> subprocess.Popen[bytes]:
        return run_stages(options, stages)

    def done(name: str, *children: subprocess.Popen[bytes]) -> None:
        for child in children:
            if child.wait():
                raise SystemExit(f"{name} ended with exit code {child.returncode}: see {out / LOG}")
        marks[name] = round(time.monotonic() - began, 1)
        print(f"{marks[name]:7.1f} s  {name}", flush=True)

    warm = warm_up_compiler(options) if options.compile else None
    done("pictures, autoencoder, latents", run("pictures", "vae", "latents"))
    done("judges; flow, distillation, training adapter", run("judges"), run("flow", "distil", "adapter"))
    done("export", run("export"))
    if warm is not None:
        warm.wait()
    facts = {"machine": machine(), "versions": versions(), "minutes": options.minutes, "seconds": marks} | measured(
        options
    )
    write_json(out / "pretraining.json", facts)
    pack(options.work / "pocket", out)
    if "quality" in facts:
        print(table(facts["quality"]))
    print(f"{time.monotonic() - began:7.1f} s in all; autoencoder {facts['autoencoder']['psnr_db']:.2f} dB")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretraining", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("build/pretraining"), help="folder of what comes out")
    parser.add_argument("--work", type=Path, default=Path(".cache/pretraining"), help="folder of states and caches")
    parser.add_argument("--minutes", type=stage_minutes, default={}, help="of single stages: vae=2,flow=5")
    parser.add_argument("--pictures", type=int, default=200_000, help="scenes to draw")
    parser.add_argument("--prompts", type=int, default=500, help="held-out prompts to read it on; 0: none")
    parser.add_argument("--compile", action="store_true", help="compile the flow, and on a GPU the autoencoder")
    parser.add_argument("--smoke", action="store_true", help="two steps of everything, to see that it runs")
    options = parser.parse_args(argv)
    options.minutes = MINUTES | options.minutes
    return options


def run_stages(
    options: argparse.Namespace, stages: Sequence[str], *, work: Path | None = None, steps: int | None = None
) -> subprocess.Popen[bytes]:
    """Stages of a pretraining as a process of their own; all write to one log."""
    work, steps = work or options.work, 2 if options.smoke else steps
    short = steps is not None
    command = [sys.executable, "-m", "photoflux.pocket.pretrain", "--work", str(work), "--out", str(work / "pocket")]
    command += ["--stages", ",".join(stages), "--pictures", str(2048 if short else options.pictures)]
    command += ["--decoded", str(512 if short else options.pictures // 2)]
    command += ["--minutes", ",".join(f"{stage}={minutes}" for stage, minutes in options.minutes.items())]
    command += ["--steps", str(steps)] if short else []
    command += ["--compile"] if options.compile and not options.smoke else []
    with (options.out / LOG).open("ab") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )


def warm_up_compiler(options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Two steps of what is compiled, in a folder of their own: the compiler keeps what it made, by shapes and code."""
    stages = ("pictures", "vae", "latents", "flow", "distil", "adapter")
    return run_stages(options, stages, work=options.work.with_name("compiled-ahead"), steps=2)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The autoencoder's error, and how well the exported base follows prompts at 4 and at 24 steps, as its judges read it."""
    facts = {"autoencoder": json.loads((options.work / "vae.json").read_text())}
    if not options.prompts:
        return facts
    facts["quality"] = evaluate_base(
        options.work / "pocket",
        prompts=20 if options.smoke else options.prompts,
        many_steps=24,
        results=options.out / "pocket_base.json",
        picture=options.out / "showcase.png",
    )
    return facts


def versions() -> dict[str, str]:
    """Of what computes."""
    import diffusers
    import transformers

    found = {"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__}
    if torch.cuda.is_available():
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return found


def pack(base: Path, out: Path) -> None:
    """The base and its spec as a tar in parts."""
    whole = out / "weights.tar"
    with tarfile.open(whole, "w") as tar:
        for path in (base, base.with_name(f"{base.name}.yaml")):
            tar.add(path, arcname=path.name)
    data = whole.read_bytes()
    for number, start in enumerate(range(0, len(data), PART_BYTES)):
        whole.with_name(f"{whole.name}.{number:02}").write_bytes(data[start : start + PART_BYTES])
    whole.unlink()


if __name__ == "__main__":
    main()
