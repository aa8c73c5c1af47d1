"""The report of an evaluation: numbers on both copies; the subject's images on the sealed copy alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from photoflux.judges.copying import likeness, structure
from photoflux.judges.scores import copy_threshold
from photoflux.judges.stats import Interval
from photoflux.pages.contact_sheet import contact_sheet
from photoflux.pages.page import Page
from photoflux.pages.plots import forest, paired_bars, trade_off

if TYPE_CHECKING:
    from PIL import Image

    from photoflux.judges.case import Case, EvaluationImages
    from photoflux.judges.scores import Scores

MEANINGS = {
    "identity_gain": "Identity gain: 0 like the base, 1 as alike as two photos",
    "overall": "Overall: identity gain times prompt following kept",
    "prompt_following": "Prompt following, tuned",
    "prompt_following_base": "Prompt following, base",
    "prompt_change": "Prompt following: change against the base",
    "leakage": "Leakage: 0 the class stayed itself, 1 every one is the subject",
    "drift_change": "Accuracy on unrelated prompts: change",
    "diversity": "Diversity kept, with trigger",
    "class_diversity": "Diversity kept, class alone",
    "copy_rate": "Share of copied training photos",
    "memorisation_gap": "Memorisation: nearness to trained over held-out photos",
    "broken_rate": "Share of broken pictures",
    "sharpness": "Sharpness kept",
}
WORST = 10


def read_interval(value: Mapping[str, float]) -> Interval:
    """An interval from its stored form."""
    return Interval(value["point"], value["lo"], value["hi"])


def evaluation_page(document: Mapping[str, Any], *, case: Case, images: EvaluationImages, scores: Scores) -> Page:
    """The report. Numbers and the base's images are on both copies; what may show the subject is on the full copy alone."""
    page = Page(f"Evaluation of {document['subject']['id']}", subtitle=_subtitle(document))
    page.verdict(*_headline(document))
    _numbers(page, document)
    _prompts(page, document)
    _drift(page, images, case, document)
    with page.only(full=True):
        _sheet(page, case, images)
        _worst(page, case, images, scores)
        _nearest(page, case, images, scores)
    with page.only(full=False):
        _base_sheet(page, case, images)
    page.section("Where these numbers come from")
    page.facts(_facts(document))
    return page


def _subtitle(document: Mapping[str, Any]) -> str:
    seeds = document["seeds"]
    return (
        f"{document['subject']['class_noun']} · base {document['base']['name']} · {document['profile']} profile: "
        f"{seeds['prompts']} prompts × {seeds['per_prompt']} seeds per set, same seeds for tuned and base"
    )


def _headline(document: Mapping[str, Any]) -> tuple[str, str]:
    if document["invalid"]:
        return "INVALID", "; ".join(document["invalid"])
    gain, leak = document["metrics"]["identity_gain"], document["metrics"]["leakage"]
    change = document["metrics"]["prompt_change"]
    return "MEASURED", (
        f"Identity gain {_format_interval(gain)}, prompt following {change['point']:+.2f} against the base, "
        f"leakage into the class {_format_interval(leak)}. The gate decides."
    )


def _format_interval(value: Mapping[str, float], *, digits: int = 2) -> str:
    return f"{value['point']:.{digits}f} [{value['lo']:.{digits}f}, {value['hi']:.{digits}f}]"


def _numbers(page: Page, document: Mapping[str, Any]) -> None:
    metrics = document["metrics"]
    page.section("Measures and their 95 % intervals")
    rows = [(text, read_interval(metrics[name]), "", None) for name, text in MEANINGS.items() if name in metrics]
    page.figure(forest(rows))
    points = [
        ("tuned", read_interval(metrics["prompt_following"]), read_interval(metrics["identity_gain"])),
        ("base", read_interval(metrics["prompt_following_base"]), Interval(0, 0, 0)),
    ]
    page.figure(trade_off(points), "Identity against prompt following: up and right is better")
    page.table(
        [
            {
                "measure": name.replace("_", " "),
                "value": v["point"],
                "from": v["lo"],
                "to": v["hi"],
                "pictures": v["n_images"],
            }
            for name, v in metrics.items()
        ]
    )


def _prompts(page: Page, document: Mapping[str, Any]) -> None:
    if not document["attributes"]:
        return
    page.section("What the prompts asked for, and what is shown")
    pairs = {
        name: (read_interval(sides["base"]), read_interval(sides["tuned"]))
        for name, sides in document["attributes"].items()
    }
    page.figure(paired_bars(pairs), "Share of pictures that show the asked value, by attribute")


def _drift(page: Page, images: EvaluationImages, case: Case, document: Mapping[str, Any]) -> None:
    """Six unrelated prompts, three pairs to a row; the open copy has the base's images alone."""
    page.section("Prompts about something else")
    metrics = document["metrics"]
    page.text(
        f"Same seeds, before and after tuning. Accuracy changed by {_format_interval(metrics['drift_change'])}; the kernel distance "
        f"of the distributions is {_format_interval(metrics['drift_kid'], digits=4)}, 0 for a model that stayed as it was."
    )
    shown = case.unrelated_prompts[:6]
    labels = [" | ".join(prompt.text for prompt in shown[i : i + 3]) for i in range(0, len(shown), 3)]
    for full, sides in ((True, (images.unrelated_base, images.unrelated)), (False, (images.unrelated_base,))):
        rows = [
            [grid.row(p)[0] for p in range(i, min(i + 3, len(shown))) for grid in sides]
            for i in range(0, len(shown), 3)
        ]
        with page.only(full=full):
            columns = ["base", "tuned"][: len(sides)] * 3
            page.image(contact_sheet(rows, row_labels=labels, column_labels=columns))


def _sheet(page: Page, case: Case, images: EvaluationImages) -> None:
    page.section("Pictures")
    references = case.photos.held_out + case.photos.trained
    rows: list[list[Any]] = []
    labels: list[str] = []
    for p in _evenly_spaced(len(case.subject_prompts), 10):
        tuned, base, class_prompt = (grid.row(p) for grid in (images.tuned, images.base, images.class_prompt))
        rows.append([references[len(rows) % len(references)], tuned[0], tuned[1], base[0], class_prompt[0]])
        labels.append(case.subject_prompts[p].text)
    columns = ["photo", "tuned", "tuned", "base", "tuned, class only"]
    page.image(contact_sheet(rows, row_labels=labels, column_labels=columns), "Base and tuned share their seed")


def _base_sheet(page: Page, case: Case, images: EvaluationImages) -> None:
    page.section("Pictures of the base")
    page.text("The subject's own pictures are on the sealed copy of this page.")
    chosen = _evenly_spaced(len(case.class_prompts), 6)
    page.image(
        contact_sheet([images.base.row(p)[:4] for p in chosen], row_labels=[case.class_prompts[p].text for p in chosen])
    )


def _worst(page: Page, case: Case, images: EvaluationImages, scores: Scores) -> None:
    page.section("The ten weakest pictures")
    order = np.argsort((scores.fidelity * (0.5 + scores.followed)).ravel())[:WORST]
    _pair_table(page, case, images, order, scores, photo=_best_reference(case))


def _nearest(page: Page, case: Case, images: EvaluationImages, scores: Scores) -> None:
    page.section("Pictures most like a training photo")
    page.text("Compared by structure, under shift and mirroring; a copy would repeat the photo's composition.")
    order = np.argsort(-scores.likeness.ravel())[:6]
    _pair_table(page, case, images, order, scores, photo=_most_similar_photo(case, images))


def _pair_table(page: Page, case: Case, images: EvaluationImages, order: Any, scores: Scores, *, photo: Any) -> None:
    seeds = scores.fidelity.shape[1]
    page.table(
        [
            {
                "photo": _tile(photo(int(i))),
                "picture": _tile(images.tuned.images[i]),
                "prompt": case.subject_prompts[int(i) // seeds].text,
                "likeness to the subject": float(scores.fidelity.ravel()[i]),
                "prompt followed": float(scores.followed.ravel()[i]),
                "structure shared with a photo": float(scores.likeness.ravel()[i]),
            }
            for i in order
        ]
    )


def _best_reference(case: Case) -> Any:
    return lambda _: case.photos.held_out[0]


def _most_similar_photo(case: Case, images: EvaluationImages) -> Any:
    shown = structure(case.photos.crops)

    def find(i: int) -> Image.Image:
        return case.photos.crops[int(likeness(structure([images.tuned.images[i]]), shown).argmax())]

    return find


def _tile(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((96, 96))


def _evenly_spaced(total: int, count: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, total - 1, min(count, total))})


def _facts(document: Mapping[str, Any]) -> dict[str, object]:
    hashes = {f"{name} hash": value for name, value in document["hashes"].items()}
    return {
        "base": f"{document['base']['name']} ({document['base']['hash']})",
        **hashes,
        "first seed": document["seeds"]["first"],
        "photos trained / held out": f"{document['photos']['trained']} / {document['photos']['held_out']}",
        "bootstrap draws": document["bootstrap"],
        "prompt following measured by": "attributes" if document["exact_attributes"] else "text-image cosine",
        "copy threshold (structural correlation)": round(
            copy_threshold(document["copy_correlation"], photos=document["photos"]["trained"]), 3
        ),
        "pictures made": document["made_share"],
    }
