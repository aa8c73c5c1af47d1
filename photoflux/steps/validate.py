"""validate: decode and measure the photos of one subject; pass on those that Great Expectations lets through."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photoflux.errors import InputError, ValidationFailed
from photoflux.manifest import unpack, write_json, write_tar
from photoflux.params import ImportParams, ValidateParams
from photoflux.photos.gather import Gathered, gather, readable
from photoflux.photos.rules import REJECT
from photoflux.photos.table import photo_table, read_files
from photoflux.photos.verdict import Verdict
from photoflux.photos.words import plain_words, read_words
from photoflux.report import publish
from photoflux.settings import get_settings
from photoflux.steps import StepResult
from photoflux.vault import committed, opened

if TYPE_CHECKING:
    from PIL import Image

    from photoflux.photos.suite import Decision, Suites

REASONS_SHOWN = 6


def run(
    photos: Path,
    *,
    validated: Path,
    report: Path,
    expectations: Path,
    data_docs: Path,
    params: ValidateParams,
    key: str = "plain://demo",
) -> StepResult:
    """Hold the photos of an import artifact against the suites; write the good ones as upright sRGB PNG without metadata.

    The report, Great Expectations' results (`expectations`, JSON) and its own page (`data_docs`) are written whatever the
    verdict. Raises ValidationFailed, naming the files and what to do, when too few good photos remain, or another expectation
    rejects the set; then `validated` is not written. Raises InputError for a suite that cannot be used.
    """
    suites = _suites(params)  # before photos are measured for a minute
    with opened(photos, key=key) as unsealed, tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        manifest = unpack(unsealed, Path(scratch))
        images = _AcceptedImages(Path(scratch) / "images", side_px=params.stored_side_px)
        paths = {entry["name"]: Path(scratch) / "photos" / entry["name"] for entry in manifest["files"]}
        rows = photo_table(read_files(paths), params=params, on_decoded=images.add, usable=suites.usable)
        decision = _advise_on_other_files(suites.decide(rows), Gathered(left_out=manifest.get("left_out", {})))
        _write_results(
            manifest,
            rows,
            decision,
            images.thumbs,
            report=report,
            expectations=expectations,
            data_docs=data_docs,
            key=key,
        )
        if decision.verdict.verdict == REJECT:
            raise ValidationFailed(_failure_sentence(str(manifest.get("source", "the set")), decision))
        with committed(validated, key=key) as out:
            accepted = decision.verdict.accepted
            files = {f"images/{images.names[name]}": images.folder / images.names[name] for name in accepted}
            write_tar(out, files=files, manifest=_manifest(manifest, rows, decision, images, paths))
    return StepResult(metrics=_metrics(decision.verdict), report=report)


def validate_folder(folder: Path, *, params: ValidateParams) -> dict[str, Any]:
    """The suites' verdict on the photos directly in `folder`, as plain JSON values: `verdict` (ok, warn, reject),
    `score` (0-100), `advice`, and per photo `file`, `status`, `reasons` (`code`, `message`) and
    `duplicate_of`.

    Raises InputError when the folder does not exist or holds no photos, or a suite cannot be used.
    """
    if not folder.is_dir():
        raise InputError(f"{readable(str(folder))}: no such folder; give a folder of photos")
    found = gather(folder, params=ImportParams(max_files=500, max_file_mb=500))
    suites = _suites(params)
    rows = photo_table(read_files(found.photos), params=params, usable=suites.usable)
    return _advise_on_other_files(suites.decide(rows), found).verdict.as_json()


def _advise_on_other_files(decision: Decision, found: Gathered) -> Decision:
    """The decision with one more sentence of advice, about the files that are no photos."""
    sentence = (
        [f"{found.left_out_sentence[0].upper()}{found.left_out_sentence[1:]}: export as JPEG what is a photo."]
        if found.left_out_sentence
        else []
    )
    return replace(decision, verdict=replace(decision.verdict, advice=[*decision.verdict.advice, *sentence]))


def _suites(params: ValidateParams) -> Suites:
    from photoflux.photos.suite import Suites

    return Suites(get_settings().expectations_dir, params=params)


def _write_results(
    manifest: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    decision: Decision,
    thumbs: Mapping[str, Image.Image],
    *,
    report: Path,
    expectations: Path,
    data_docs: Path,
    key: str,
) -> None:
    """Write results (sealed) and both pages (of a person: an open copy with numbers alone, and a sealed one in full)."""
    from photoflux.pages.data_docs import DataDocs
    from photoflux.pages.validate import validation_page

    with committed(expectations, key=key) as out:
        write_json(out, decision.as_json())
    subject = manifest.get("subject", {})
    publish(data_docs, DataDocs(decision.results), subject=subject, key=key)
    page = validation_page(manifest, rows=rows, verdict=decision.verdict, findings=decision.findings, thumbs=thumbs)
    publish(report, page, subject=subject, key=key)


class _AcceptedImages:
    """A folder with one PNG per decoded photo, no larger than `side_px` on its short side, and thumbnails for the report."""

    def __init__(self, folder: Path, *, side_px: int) -> None:
        self.folder = folder
        self.side_px = side_px
        self.names: dict[str, str] = {}
        self.thumbs: dict[str, Image.Image] = {}
        folder.mkdir(parents=True)

    def add(self, name: str, image: Image.Image) -> None:
        from photoflux.pages.validate import thumbnail

        stored = _stored_name(name, taken={other.casefold() for other in self.names.values()})
        self.names[name] = stored
        self.thumbs[name] = thumbnail(image)
        buffer = io.BytesIO()
        _reduced(image, side_px=self.side_px).save(buffer, format="PNG", compress_level=3)
        (self.folder / stored).write_bytes(buffer.getvalue())


def _stored_name(name: str, *, taken: set[str]) -> str:
    """`<stem>.png`; two photos that differ only in their ending keep it in the stem. `taken` is in lower case."""
    stem = Path(name).stem if f"{Path(name).stem}.png".casefold() not in taken else name.replace(".", "-")
    while f"{stem}.png".casefold() in taken:
        stem += "-2"
    return f"{stem}.png"


def _reduced(image: Image.Image, *, side_px: int) -> Image.Image:
    from PIL import Image

    factor = side_px / min(image.size)
    if factor >= 1:
        return image
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)


def _manifest(
    manifest: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    decision: Decision,
    images: _AcceptedImages,
    paths: Mapping[str, Path],
) -> dict[str, Any]:
    verdict = decision.verdict
    accepted = [row for row in rows if row["file"] in set(verdict.accepted)]
    texts = {name: text for name, file in paths.items() if (text := file.with_suffix(".txt")).is_file()}
    captions = {name: plain_words(words) for name, words in manifest.get("captions", {}).items()}
    captions |= {name: read_words(text.read_bytes()) for name, text in texts.items()}
    return {
        "subject": manifest.get("subject", {}),
        "source": manifest.get("source", ""),
        "validation": verdict.as_json(),
        "set": verdict.whole,
        "photos": [{**row, "file": f"images/{images.names[row['file']]}", "source": row["file"]} for row in accepted],
        "captions": {f"images/{images.names[n]}": captions[n] for n in verdict.accepted if captions.get(n)},
        "expectations": [finding.as_json() for finding in decision.findings],
    }


def _metrics(verdict: Verdict) -> dict[str, float]:
    whole = verdict.whole
    return {
        "photos": whole["files"],
        "usable": whole["usable"],
        "rejected": whole["files"] - whole["usable"],
        "near_copies": whole["near_copies"],
        "backgrounds": whole["backgrounds"],
        "closeness": round(whole["closeness"], 4),
        "score": verdict.score,
    }


def _failure_sentence(source: str, decision: Decision) -> str:
    """The error sentence of a rejected set: its failed rule, and the reason of each rejected file."""
    verdict = decision.verdict
    rejected = [photo for photo in verdict.photos if photo["status"] == REJECT]
    reasons = [f"{photo['file']}: {photo['reasons'][0]['message'].split(':')[0]}" for photo in rejected]
    rest = [f"{len(reasons) - REASONS_SHOWN} more"] if len(reasons) > REASONS_SHOWN else []
    sentence = f" ({'; '.join(reasons[:REASONS_SHOWN] + rest)})" if reasons else ""
    return f"{source}: {decision.rejecting[0].message_for(verdict.whole)}{sentence}; {_remedy(decision)}"


def _remedy(decision: Decision) -> str:
    missing = decision.verdict.whole["missing"]
    if missing:
        return f"add at least {missing} good {'photo' if missing == 1 else 'photos'}"
    return (
        "leave some out"
        if decision.rejecting[0].column == "usable"
        else "change the set, or the suite that asks for it"
    )
