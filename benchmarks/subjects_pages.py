"""What the benchmark of subjects tells: the page, its tables, the pictures side by side, the curves, and the README's paragraph."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING, Any

from benchmarks.recipes import DREAMBOOTH, OURS, PHOTOS, RECIPES, RIVALS, STARTED, Recipe, among, point
from photoflux.pages.evaluate import read_interval
from photoflux.pages.palette import INK, SOFT
from photoflux.pages.plots import new_figure
from photoflux.steps.gate import SEVERITY_ORDER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image, ImageDraw

TILE_PX, GAP_PX, BETWEEN_PX, LINE_PX = 128, 4, 18, 18
NAMES = {
    "calibration": ("Subjects that limits and recipes were chosen on", ""),
    "subjects": ("Subjects that no training and no choice saw", " --headline"),
}
"""Title of either page, and what makes it, by the name of its files."""
README_MARKS = ("<!-- figures: python -m benchmarks.subjects --readme -->", "<!-- end of figures -->")


@dataclass(frozen=True)
class Group:
    """Some tiles of a row under one line of text."""

    text: str
    tiles: Sequence[Image.Image]


def sheet(result: Mapping[str, Any], folder: Path) -> Image.Image:
    """Per subject, worst first: two photos, and pictures by each recipe."""
    first = result["subjects"][0]
    asked = {recipe.name: first[recipe.name]["captions"][: recipe.shown] for recipe in among(first)}
    heads = [("photos", ("", "")), *((recipe.title, asked[recipe.name]) for recipe in among(first))]
    return grouped([_tiles(row, folder) for row in result["subjects"]], heads=heads)


def _tiles(row: Mapping[str, Any], folder: Path) -> list[Group]:
    home = folder / row["subject"]
    photos = Group(_title(row), opened(home / "photos", "*.jpg", 2))
    return [photos, *(_drawn(row[recipe.name], home) for recipe in among(row))]


def _drawn(one: Mapping[str, Any], home: Path) -> Group:
    text = f"{one['verdict']}, gain {point(one, 'identity_gain'):.2f}, leakage {point(one, 'leakage'):.2f}"
    return Group(text, opened(home / one["folder"] / "pictures", "*.png", None))


def opened(folder: Path, pattern: str, count: int | None) -> list[Image.Image]:
    """The first `count` pictures of a folder."""
    from PIL import Image

    return [Image.open(file).convert("RGB") for file in sorted(folder.glob(pattern))[:count]]


def grouped(rows: Sequence[Sequence[Group]], *, heads: Sequence[tuple[str, Sequence[str]]]) -> Image.Image:
    """Rows of tiles in groups; each group has its text above it in every row, its name and its tiles' names at the top."""
    from PIL import Image, ImageDraw, ImageFont

    starts = _starts([len(names) for _, names in heads])
    height = LINE_PX + TILE_PX + GAP_PX
    page = Image.new("RGB", (starts[-1] - BETWEEN_PX, 2 * LINE_PX + len(rows) * height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for left, (name, names) in zip(starts, heads, strict=False):
        draw.text((left, 3), name, fill=INK, font=ImageFont.load_default(13))
        for place, text in enumerate(names):
            said = _fit(draw, text, font, TILE_PX)
            draw.text((left + place * (TILE_PX + GAP_PX), LINE_PX + 2), said, fill=SOFT, font=font)
    for number, row in enumerate(rows):
        top = 2 * LINE_PX + number * height
        for left, group in zip(starts, row, strict=False):
            draw.text(
                (left, top + 2),
                _fit(draw, group.text, font, len(group.tiles) * (TILE_PX + GAP_PX) + BETWEEN_PX - 2 * GAP_PX),
                fill=INK,
                font=font,
            )
            for place, tile in enumerate(group.tiles):
                fitted = tile.resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
                page.paste(fitted, (left + place * (TILE_PX + GAP_PX), top + LINE_PX))
    return page


def _starts(counts: Sequence[int]) -> list[int]:
    """Where each group begins from the left, and where one more would."""
    starts = [GAP_PX]
    for count in counts:
        starts.append(starts[-1] + count * (TILE_PX + GAP_PX) - GAP_PX + BETWEEN_PX)
    return starts


def _fit(draw: ImageDraw.ImageDraw, text: str, font: Any, room_px: int) -> str:
    """The text, cut where it is wider than its room."""
    while draw.textlength(text, font=font) > room_px and len(text) > 2:
        text = text[:-2].rstrip(" ,…") + "…"
    return text


def _title(row: Mapping[str, Any]) -> str:
    looks = row["looks"]
    return f"{row['subject']}: {looks['colour']}, {looks['accent']}, {looks['pattern']}, {looks['mark']}"


def curves(result: Mapping[str, Any]) -> Figure:
    """Identity gain and leakage against seconds of training: thin per subject, thick the mean."""
    figure, axes = new_figure(10.4, 4.6, columns=2)
    for axis, name, title in zip(
        axes, ("identity", "leakage"), ("identity gain", "leakage into the class"), strict=True
    ):
        for recipe in among(result["subjects"][0]):
            _lines(axis, result["subjects"], recipe, name)
        axis.set_xlabel("seconds of training", color=SOFT)
        axis.set_title(f"{title}, as judged on the way", loc="left", fontsize=10, color=SOFT)
        axis.set_xlim(left=0)
        axis.set_ylim(-0.25, 1.1)
    time = result["time_to_gain"]
    for axis, aim, side in zip(axes, (time["gain"], time["leakage"]), ("at least", "at most"), strict=True):
        axis.axhline(aim, color=INK, lw=1, ls="--", zorder=0)
        axis.annotate(
            f"{side} {aim:g}",
            (1, aim),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            color=INK,
            fontsize=9,
        )
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside upper right", ncols=3)
    return figure


def _lines(axis: Axes, rows: Sequence[Mapping[str, Any]], recipe: Recipe, name: str) -> None:
    for row in rows:
        axis.plot(*_with_start(row[recipe.name]["curve"], name), color=recipe.colour, lw=0.8, alpha=0.3)
    mean = mean_curve(rows, recipe)
    axis.plot(
        *_with_start(mean, name),
        color=recipe.colour,
        lw=2.4,
        marker="o",
        ms=4,
        label=f"{recipe.title}: mean, and each subject",
    )


def mean_curve(rows: Sequence[Mapping[str, Any]], recipe: Recipe) -> list[dict[str, float]]:
    """The mean over subjects at each candidate: every subject has them after the same steps."""
    together = zip(*(row[recipe.name]["curve"] for row in rows), strict=True)
    return [
        {name: fmean(one[name] for one in ones) for name in ("seconds", "identity", "leakage")} for ones in together
    ]


def _with_start(curve: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    return [0.0, *(one["seconds"] for one in curve)], [0.0, *(one[name] for one in curve)]


def page(
    name: str, result: Mapping[str, Any], *, tuned: Mapping[str, Any] | None, controls: Mapping[str, Any] | None
) -> str:
    """`<name>.md`, with how the rivals were tuned and what the gate refused beside it."""
    title, option = NAMES[name]
    told = " ".join(_introduction(name, result, option).split())
    more = "".join(
        f"\n{part}\n" for part in (tuned and tuning_text(tuned), controls and controls_text(controls)) if part
    )
    return f"""# {title}
{fill(told, 120, break_on_hyphens=False)}

{tables(result)}

![Photos, and pictures by the recipes]({name}.png)

![Identity gain and leakage against seconds of training]({name}_curves.png)
{more}
## How it was measured
- Identity gain, prompt accuracy, leakage and copies are the evaluation's, with their 95 % intervals. *Fresh* is identity
  gain against {result["fresh"]} new renders of the subject instead of the held-out photo.
- Seconds of {OURS.title} are those of the whole fine-tuning step: loading the base, preparation, training, and judging candidates.
{_rivals_seconds(result)}- The curves show adapters as fine-tuning judges its candidates, with few pictures; their seconds are of training
  alone.
{_measured_with(result)}
"""


def _rivals_seconds(result: Mapping[str, Any]) -> str:
    if not among(result["subjects"][0], RIVALS):
        return ""
    return (
        f"  Those of {DREAMBOOTH.title} are loading, drawing and encoding class pictures, and training; judging it on its way is not "
        "counted.\n"
    )


def _rivals_sentence(result: Mapping[str, Any]) -> str:
    settings, known = result["recipes"], among(result["subjects"][0], RIVALS)
    if not known:
        return ""
    rates = " and ".join(f"{settings[rival.name]['lr']:g} for {settings[rival.name]['steps']} steps" for rival in known)
    return f"""*{DREAMBOOTH.title}* is the public recipe with class pictures
    (`benchmarks/dreambooth.py`), *{STARTED.title}* the same from our starting adapter, each with the rate and steps that were best on
    calibration subjects ({rates})."""


def _introduction(name: str, result: Mapping[str, Any], option: str) -> str:
    why = "The gate's limits are chosen on these subjects, so what they show of them is how well they fit."
    if name == "subjects":
        why = "Their seeds were written down before limits and recipes were chosen; they are drawn once, and reported whatever comes."
    return f"""{len(result["subjects"])} subjects of the pocket world, one per kind, with looks kept from pretraining, {PHOTOS} photos
    each. {why} Verdicts are those of {result["verdicts"]}. {_rivals_sentence(result)} Written by
    `python -m benchmarks.subjects{option}`; everything is in `{name}.json`."""


def tables(result: Mapping[str, Any]) -> str:
    """Subjects, means beside their targets, and the time to the aim."""
    parts = [_subjects_table(result["subjects"]), _targets_table(result), _times_text(result)]
    return "\n\n".join([*parts, _margins_table(result), *_gate_table(result["subjects"])])


def _margins_table(result: Mapping[str, Any]) -> str:
    """What the gate's limits rest on."""
    known = among(result["subjects"][0], RIVALS)
    body = [
        [
            one["rule"],
            f"{'≥' if one['at_least'] else '≤'} {one['limit']:g}",
            short(one["our_worst_bound"]),
            str(one["not_passed"][OURS.name]),
            *(
                text
                for rival in known
                for text in (short(one["median"][rival.name]), str(one["not_passed"][rival.name]))
            ),
        ]
        for one in result["margins"]
    ]
    heads = (
        "rule",
        "limit",
        f"{OURS.title}: worst bound",
        "not passed",
        *(text for rival in known for text in (f"{rival.title}: median", "not passed")),
    )
    return f"## The gate's limits (these subjects: `{result['hashes']['calibration']}`)\n{table(heads, body)}"


def _gate_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The whole gate on our adapters, where the audit was run."""
    body = [
        [row["subject"], row["gate"]["verdict"], row["gate"]["bias_audit"]["message"]] for row in rows if row["gate"]
    ]
    return [f"## With the bias audit\n{table(('subject', 'gate', 'bias audit'), body)}"] if body else []


def _subjects_table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ("subject", "verdict", "identity gain", "fresh", "prompt accuracy", "leakage", "copies", "s", "not passed")
    body = [_cells(row, recipe) for row in rows for recipe in among(row)]
    return f"## Worst first\n{table(heads, body)}"


def _cells(row: Mapping[str, Any], recipe: Recipe) -> list[str]:
    one = row[recipe.name]
    return [
        row["subject"] if recipe == OURS else recipe.title,
        one["verdict"],
        _span(one, "identity_gain"),
        f"{one['identity_gain_fresh']:.2f}",
        _span(one, "prompt_change", sign="+"),
        _span(one, "leakage"),
        f"{point(one, 'copy_rate'):.2f}",
        f"{one['seconds']:.0f}",
        not_passed(one["rules"]),
    ]


def not_passed(judged: Mapping[str, Mapping[str, Any]]) -> str:
    """The rules in the way of a pass, by verdict, most serious first."""
    names = {
        word: sorted(name for name, rule in judged.items() if rule["verdict"] == word) for word in SEVERITY_ORDER[:0:-1]
    }
    return "; ".join(f"{word}: {', '.join(found)}" for word, found in names.items() if found)


def _span(one: Mapping[str, Any], metric: str, *, sign: str = "") -> str:
    value = read_interval(one["metrics"][metric])
    return f"{value.point:{sign}.2f} [{value.lo:.2f}, {value.hi:.2f}]"


def _targets_table(result: Mapping[str, Any]) -> str:
    known = among(result["subjects"][0], RIVALS)
    body = [
        [
            aim["target"],
            f"{'≥' if aim['at_least'] else '≤'} {aim['aim']:g}",
            short(aim["reached"]),
            "yes" if aim["met"] else "**no**",
            *(short(aim["beside"][rival.name]) for rival in known),
        ]
        for aim in result["targets"]
    ]
    heads = (f"over {len(result['subjects'])} subjects", "target", OURS.title, "met", *(one.title for one in known))
    return f"## Means and targets\n{table(heads, body)}"


def short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.0f}" if value >= 10 else f"{round(value, 2) + 0.0:.2f}"


def _times_text(result: Mapping[str, Any]) -> str:
    known = among(result["subjects"][0])
    found = result["time_to_gain"]
    heads = ("seconds of training", *(f"{recipe.title}: {way}" for way in ("first", "clean") for recipe in known))
    rows = {"mean curve": {way: found[way]["mean_curve"] for way in ("first", "clean")}}
    rows |= {
        kind: {way: found[way]["per_subject"][kind] for way in ("first", "clean")}
        for kind in found["first"]["per_subject"]
    }
    body = [
        [name, *(_or_never(row[way][recipe.name]) for way in ("first", "clean") for recipe in known)]
        for name, row in rows.items()
    ]
    return f"## Time to likeness\n{table(heads, body)}\n\n{fill(_times_sentence(result), 120, break_on_hyphens=False)}"


def _times_sentence(result: Mapping[str, Any]) -> str:
    found, count, known = result["time_to_gain"], len(result["subjects"]), among(result["subjects"][0])
    reached = "; ".join(
        f"{recipe.title} the first with {found['first']['reached_by'][recipe.name]} and the second with "
        f"{found['clean']['reached_by'][recipe.name]}"
        for recipe in known
    )
    prepared = ", ".join(f"{recipe.title} {found['prepared_s'][recipe.name]:.1f} s" for recipe in known)
    trained = ", ".join(f"{recipe.title} {found['trained_s'][recipe.name]:.1f} s" for recipe in known)
    return (
        f"*First*: when identity gain {found['gain']:g} is first reached, whatever becomes of the class. *Clean*: the first adapter "
        f"on the way that has it with leakage of at most {found['leakage']:g}. Of {count} subjects reaches {reached}. Before training "
        f"starts, each prepares: {prepared}; training then takes: {trained}."
        + (
            f" {DREAMBOOTH.title} has no candidates to choose from: it is done after all of its steps."
            if len(known) > 1
            else ""
        )
    )


def _or_never(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def tuning_text(tuned: Mapping[str, Any]) -> str:
    """How the rivals' rates and steps were chosen."""
    rows = tuned["grid"]
    body = [
        [
            _rival(name).title,
            f"{one['lr']:g}",
            str(one["steps"]),
            f"{one['passes']} of {one['subjects']}",
            short(one["score"]),
            short(one["identity_gain"]),
            short(one["leakage"]),
            "chosen" if _chosen(tuned, name, one) else "",
        ]
        for name in tuned["chosen"]
        for one in rows[name]
    ]
    heads = ("recipe", "rate", "steps", "pass", "score", "identity gain", "leakage", "")
    kinds = ", ".join(tuned["subjects"])
    said = f"On {len(tuned['subjects'])} calibration subjects ({kinds}), {tuned['profile']} profile. {tuned['rule']}"
    return f"## How the rival was tuned\n{fill(said, 120, break_on_hyphens=False)}\n\n{table(heads, body)}"


def _rival(name: str) -> Recipe:
    return next(rival for rival in RIVALS if rival.name == name)


def _chosen(tuned: Mapping[str, Any], name: str, one: Mapping[str, Any]) -> bool:
    return all(tuned["chosen"][name][key] == one[key] for key in ("lr", "steps"))


def controls_text(controls: Mapping[str, Any]) -> str:
    """What must not pass, and how much of it did."""
    body = [
        [name, one["says"], *_passed(one), "; ".join(f"{rule} {count}" for rule, count in one["stopped_by"].items())]
        for name, one in controls["by_control"].items()
    ]
    body.append(["**all**", "", *_passed(controls["all"]), ""])
    heads = ("control", "what is wrong with it", "false PASS", "95 % interval", "rules that failed")
    said = (
        f"Adapters that are bad by how they were made, of {len(controls['subjects'])} subjects from seed "
        f"{controls['seeds']['subjects']}, held to the same rules, without a bias audit. The interval of all counts "
        "subjects, not adapters; it is about these five faults, which are easy to name, and no others."
    )
    return f"## Negative controls\n{fill(said, 120, break_on_hyphens=False)}\n\n{table(heads, body)}"


def _passed(one: Mapping[str, Any]) -> tuple[str, str]:
    return f"{one['passed']} of {one['count']}", f"{one['lo']:.3f} to {one['hi']:.3f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured_with(result: Mapping[str, Any]) -> str:
    place, base, tuned = result["machine"], result["base"], result["params"]["finetune"]
    packages = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    judged = result["params"]["evaluate"]
    return (
        f"- Base {base['name']} `{base['hash'][:12]}`, parameters `{result['hashes']['params']}` ({tuned['steps']} steps "
        f"of {tuned['batch_size']}, {judged['profile']} profile), subjects from seed {result['seeds']['subjects']}.\n"
        f"- {place['processor']}, {place['cores']} cores, {place['threads']} threads, {place['memory_gib']} GiB, device "
        f"{place['device']}, {place['system']}.\n- {packages}."
    )


def readme(text: str, result: Mapping[str, Any]) -> str:
    """The README with the headline's figures between its marks."""
    before, rest = text.split(README_MARKS[0])
    _, after = rest.split(README_MARKS[1])
    return "\n".join([before + README_MARKS[0], *_readme_lines(result), README_MARKS[1] + after])


def _readme_lines(result: Mapping[str, Any]) -> Iterator[str]:
    found, count = result["summary"], len(result["subjects"])
    folder = "benchmarks/results/subjects"
    yield f"![Subjects that no training and no choice saw: photos, and pictures by three recipes]({folder}.png)"
    yield ""
    said = (
        f"[Twelve subjects]({folder}.md) that no training saw and no limit or recipe was chosen on, beside DreamBooth with class "
        "pictures as people run it ([ours after the public script](benchmarks/dreambooth.py), at the best of the rates and steps "
        "tried on other subjects):"
    )
    yield fill(said, 120, break_on_hyphens=False, break_long_words=False)
    yield ""
    body = [
        [
            recipe.title,
            f"{one['passes']} of {count}",
            short(one["identity_gain"]),
            short(one["leakage"]),
            short(-one["prompt_change"]),
            short(one["seconds"]),
        ]
        for recipe in RECIPES
        for one in (found[recipe.name],)
    ]
    yield table(("", "pass", "identity gain", "leakage", "prompt accuracy lost", "seconds"), body)
    failed = [
        margin["rule"]
        for margin in result["margins"]
        if all(margin["not_passed"][rival.name] > count / 2 for rival in among(result["subjects"][0], RIVALS))
    ]
    if failed:
        yield ""
        said = f"What either rival fails by, on most subjects: {', '.join(failed)}."
        yield fill(said, 120, break_on_hyphens=False, break_long_words=False)


def figure_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
