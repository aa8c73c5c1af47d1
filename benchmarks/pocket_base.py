"""How well the pocket base follows prompts it was never trained on, as read by the pocket judges.

    python benchmarks/pocket_base.py --base models/pocket --prompts 500

Draws one picture per held-out scene through the stock pipeline, few-step and many-step with the same noise, and writes
`benchmarks/results/pocket_base.json` and a grid of pictures beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from photoflux.judges.encoders import Judges
from photoflux.manifest import write_json
from photoflux.pocket import world
from photoflux.pocket.data import classes, label_ids

HELD_OUT_SEED = 987_654_321


def machine() -> dict[str, Any]:
    """What the numbers of a benchmark were measured on: processor, cores and memory it may use, device, threads."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    cuda = torch.cuda.is_available()
    return {
        "processor": named[1].strip() if named else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def held_out(count: int, *, seed: int = HELD_OUT_SEED) -> tuple[list[str], np.ndarray]:
    """Captions whose looks no training saw (three in ten are people), and the class ids that they state `[N, A]`."""
    rng = np.random.default_rng(seed)
    told = [world.scene_prompt(_scene(rng), rng) for _ in range(count)]
    return [caption for caption, _ in told], np.stack([label_ids(stated) for _, stated in told])


def _scene(rng: np.random.Generator) -> world.Scene:
    person = rng.random() < 0.3
    subject = world.sample_person(rng) if person else world.sample_subject(rng, heldout=True)
    return world.sample_scene(rng, subject=subject)


def generate_images(pipe: Any, prompts: list[str], *, spec: dict[str, Any], steps: int, batch: int = 25) -> np.ndarray:
    """uint8 `[N, H, W, 3]`; picture `i` always starts from noise of seed `i`."""
    pictures = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        seeds = [torch.Generator().manual_seed(start + offset) for offset in range(len(part))]
        output = pipe(
            part,
            height=spec["resolution_px"],
            width=spec["resolution_px"],
            num_inference_steps=steps,
            guidance_scale=spec["guidance_scale"],
            max_sequence_length=spec["text_length"],
            generator=seeds,
            output_type="np",
        )
        pictures.append((output.images * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def read(judges: Judges, pictures: np.ndarray) -> np.ndarray:
    """Class ids `[N, A]` that the judges see, in the order of `classes()`."""
    seen = judges.attributes([Image.fromarray(picture) for picture in pictures])
    return np.stack([seen[name].argmax(dim=1).numpy() for name in classes()], axis=1)


def scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Share of prompts whose picture shows what was asked, per attribute that the prompts name."""
    result = {}
    for column, name in enumerate(classes()):
        asked = truth[:, column] >= 0
        if asked.any():
            result[name] = round(float((truth[asked, column] == predicted[asked, column]).mean()), 4)
    return result


def grid(pictures: np.ndarray, *, columns: int = 10) -> Image.Image:
    rows = [np.concatenate(list(pictures[i : i + columns]), axis=1) for i in range(0, len(pictures), columns)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def evaluate_base(base: Path, *, prompts: int, many_steps: int, results: Path, picture: Path | None) -> dict[str, Any]:
    import yaml
    from diffusers import FluxPipeline

    spec = yaml.safe_load(base.with_name(f"{base.name}.yaml").read_text())
    pipe = FluxPipeline.from_pretrained(base, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    judges, (captions, truth) = Judges.load(base / "judges"), held_out(prompts)
    facts: dict[str, Any] = {"prompts": prompts, "machine": machine()}
    facts["judges"] = json.loads((base / "judges" / "judges.json").read_text())["card"]
    for steps in (spec["steps"], many_steps):
        started = time.perf_counter()
        pictures = generate_images(pipe, captions, spec=spec, steps=steps)
        seconds = time.perf_counter() - started
        facts[f"steps_{steps}"] = {
            "attributes": scores(truth, read(judges, pictures)),
            "pictures_per_s": round(prompts / seconds, 2),
        }
        results.parent.mkdir(parents=True, exist_ok=True)
        grid(pictures[: min(50, prompts // 10 * 10)]).save(results.with_name(f"{results.stem}_{steps}.png"))
    write_json(results, facts)
    if picture:
        showcase(pipe, spec, picture)
    return facts


SHOWCASE = (
    ("a photo of a red spotted dog on the beach", "a photo of a blue car in the city", "a photo of a yellow bird in the forest",
     "a photo of a green turtle under water", "a photo of a purple teapot in the kitchen", "a photo of a white cat in the snow"),
    ("a watercolor of an orange fish under water", "a cartoon of a pink robot in the meadow",
     "pixel art of a green boat on the beach", "a watercolor of a brown dog in the forest",
     "a cartoon of a red striped mug in the kitchen", "pixel art of a yellow lamp in space"),
    ("a photo of a woman doctor with dark skin in the city", "a photo of a man chef in the kitchen",
     "a cartoon of a firefighter in the meadow", "a photo of a pilot with grey hair in the desert",
     "a watercolor of a nurse in the snow", "a photo of a farmer with medium skin in the meadow"),
)  # fmt: skip
"""What the README shows; seeds are the first ones, nothing is picked."""


def showcase(pipe: Any, spec: dict[str, Any], file: Path, *, tile_px: int = 192) -> Path:
    """Draw `SHOWCASE` as a picture with its prompts."""
    from PIL import ImageDraw, ImageFont

    prompts = [prompt for row in SHOWCASE for prompt in row]
    drawn = generate_images(pipe, prompts, spec=spec, steps=spec["steps"])
    columns, text_px, gap_px = len(SHOWCASE[0]), 36, 8
    sheet = Image.new(
        "RGB", (columns * (tile_px + gap_px) + gap_px, len(SHOWCASE) * (tile_px + text_px + gap_px) + gap_px), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (prompt, picture) in enumerate(zip(prompts, drawn, strict=True)):
        x = gap_px + number % columns * (tile_px + gap_px)
        y = gap_px + number // columns * (tile_px + text_px + gap_px)
        sheet.paste(Image.fromarray(picture).resize((tile_px, tile_px), Image.Resampling.LANCZOS), (x, y))
        pen.multiline_text(
            (x, y + tile_px + 3), "\n".join(textwrap.wrap(prompt, 30)[:2]), fill="#3a3f47", font=font, spacing=2
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, optimize=True)
    return file


def table(facts: dict[str, Any]) -> str:
    runs = {name: facts[name]["attributes"] for name in facts if name.startswith("steps_")}
    lines = [f"{'attribute':<12}{'judge':>8}" + "".join(f"{name:>10}" for name in runs)]
    for attribute in next(iter(runs.values())):
        values = "".join(f"{run[attribute]:>10.3f}" for run in runs.values())
        lines.append(f"{attribute:<12}{facts['judges'].get(attribute, float('nan')):>8.3f}{values}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, default=Path("models/pocket"))
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--many-steps", type=int, default=24)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/pocket_base.json"))
    parser.add_argument("--picture", type=Path, help="also draw the README's picture into this file")
    options = parser.parse_args()
    facts = evaluate_base(
        options.base,
        prompts=options.prompts,
        many_steps=options.many_steps,
        results=options.results,
        picture=options.picture,
    )
    print(table(facts))


if __name__ == "__main__":
    main()
