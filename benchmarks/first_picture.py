"""How long one person waits, alone on a machine: from uploading to the first picture, and for each picture after that.

    python -m benchmarks.first_picture

Starts the service with its usual settings, uploads six sample photos, and asks for pictures of a subject that has no model yet; then asks
for one after the other. Writes `first_picture.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.chaos import FINAL, RetryingClient, RunningService
from benchmarks.pocket_base import machine
from photoflux.manifest import write_json

PHOTOS = sorted(Path("data/samples/dog").glob("*.jpg"))[:6]
PROMPTS = ("a photo of sks dog on the beach", "a photo of sks dog in the forest", "a cartoon of sks dog in the meadow")


def measure_waits(served: RunningService, *, count: int) -> dict[str, Any]:
    """The waits in seconds: for the first picture, and for `count` more."""
    me = RetryingClient(served, "p0@example.org")
    me.sign_in()
    me.agree()
    subject = me.ask("POST", "/api/subjects", json={"class_noun": "dog", "depicts": "no_person"}).json()["id"]
    started = time.monotonic()
    files = [("photos", (photo.name, photo.read_bytes(), "image/jpeg")) for photo in PHOTOS]
    me.ask("POST", "/api/upload", data={"subject": subject}, files=files).raise_for_status()
    uploaded = time.monotonic()
    picture(me, subject, PROMPTS[0], seed=0)
    first = time.monotonic()
    waits = []
    for seed in range(count):
        begun = time.monotonic()
        picture(me, subject, PROMPTS[seed % len(PROMPTS)], seed=seed)
        waits.append(time.monotonic() - begun)
    return {
        "upload_s": round(uploaded - started, 2),
        "first_picture_s": round(first - started, 1),
        "pictures": count,
        "picture_p50_s": round(statistics.median(waits), 3),
        "picture_p95_s": round(statistics.quantiles(waits, n=20)[-1], 3),
        "picture_max_s": round(max(waits), 3),
    }


def picture(me: RetryingClient, subject: str, prompt: str, *, seed: int) -> bytes:
    """A picture's bytes, from asking on."""
    asked = {"subject": subject, "prompt": prompt, "seed": seed}
    result = me.ask("POST", "/api/generate", json=asked).json()["id"]
    while (shown := me.ask("GET", f"/api/results/{result}?wait=30").json())["state"] not in FINAL:
        pass
    if shown["state"] != "succeeded":
        raise RuntimeError(shown["error"]["message"])
    return me.ask("GET", shown["images"][0]["url"]).content


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_picture", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(argv)
    with TemporaryDirectory(prefix="photoflux-") as scratch:
        served = RunningService(Path(scratch), "--no-mlflow", people=1)
        try:
            found = measure_waits(served, count=options.count)
        finally:
            served.stop()
    result = {"kind": "benchmark-first-picture", "schema_version": 1, "machine": machine(), **found}
    write_json(options.out / "first_picture.json", result)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
