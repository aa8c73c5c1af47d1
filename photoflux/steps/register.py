"""Enter an adapter that its gate let through in the registry, with its lineage, its card and its alias."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photoflux.errors import GateRejected, InputError
from photoflux.manifest import digest, read_manifest, write_json, write_text
from photoflux.params import RegisterParams
from photoflux.settings import get_settings
from photoflux.steps import StepResult
from photoflux.vault import committed, opened

if TYPE_CHECKING:
    from photoflux.tracking import Record, Version

SCHEMA_VERSION = 1
CURVES, TEMPLATE = "curves.json", "card.md.j2"
LOSSES = ("subject", "preserved")
REPORT_NAMES = ("report", "report.html")
"""What a step calls its page; it lies beside the step's JSON."""


@dataclass(frozen=True)
class Dossier:
    """All that is known about one adapter: the documents of the steps that made and judged it, and its digest."""

    manifest: dict[str, Any]
    curves: dict[str, list[tuple[int, float]]]
    decision: dict[str, Any]
    evaluation: dict[str, Any]
    audit: dict[str, Any]
    digest: str

    @property
    def overall_lo(self) -> float:
        """Lower bound of the overall score: what versions of one model are ranked by."""
        return float(self.evaluation["metrics"]["overall"]["lo"])

    @property
    def yardstick(self) -> str:
        """What the overall score was measured with. Scores by different yardsticks cannot be compared."""
        hashes = self.evaluation["hashes"]
        parts = (self.evaluation["base"]["hash"], hashes["judges"], hashes["prompts"])
        return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def run(
    adapter: Path,
    decision: Path,
    evaluation: Path,
    audit: Path,
    *,
    card: Path,
    receipt: Path,
    params: RegisterParams,
    key: str = "plain://demo",
) -> StepResult:
    """Register the adapter as a model version; it becomes champion unless the present champion is better.

    The same adapter registered again is the same version. Raises GateRejected naming the rule that stands against it
    when its decision is not to promote and no sign-off is possible or given; InputError when the documents belong to
    different adapters. On any error the registry is as it was before.
    """
    from photoflux.tracking import CHALLENGER, CHAMPION, Registry

    found = _dossier(adapter, decision, evaluation, audit, key=key)
    check_promotable(found.decision, params)
    name = params.name or found.manifest["subject"]["id"]
    registry = Registry()
    with _record(found, adapter, (decision, evaluation, audit), params, key=key) as record, ExitStack() as undo:
        version = undo.enter_context(registry.entered(name, record))
        better, why = outranks(version, registry.at(name, CHAMPION))
        undo.enter_context(registry.pointed(version, CHALLENGER))
        if better:
            undo.enter_context(registry.pointed(version, CHAMPION))
        alias = CHAMPION if better else CHALLENGER
        with committed(card, key=key) as page, committed(receipt, key=key) as slip:
            write_text(page, render_card(found, params, name=name, version=version.number, alias=alias))
            write_json(slip, _receipt(version, alias, why, params))
    return StepResult(metrics={"version": version.number, "champion": float(better), "overall_lo": found.overall_lo})


def check_promotable(decision: Mapping[str, Any], params: RegisterParams) -> None:
    """Raises GateRejected unless the gate promotes, or a person signs for what it left open."""
    if decision["promote"]:
        return
    against = [reason for reason in decision["reasons"] if reason["verdict"] == decision["verdict"]]
    rule = "; ".join(str(reason["message"]) for reason in against[:3]) or "no rule is named"
    if not decision.get("sign_off_possible"):
        raise GateRejected(f"the gate said {decision['verdict']} and nothing is registered: {rule}")
    if not params.sign_off_by:
        raise GateRejected(
            f"the gate said {decision['verdict']}: {rule}; to register it all the same, set register.sign_off_by "
            "and register.sign_off_reason"
        )


def outranks(version: Version, champion: Version | None) -> tuple[bool, str]:
    """Whether a version takes the champion's alias, and why: it does if its overall lower bound is no lower."""
    if champion is None:
        return True, "there was no champion"
    if champion.number == version.number:
        return True, "it is the champion"
    if version.tags["yardstick"] != champion.tags.get("yardstick"):
        return True, f"version {champion.number} was measured on another base, with other judges or other prompts"
    mine, theirs = (float(v.tags["overall_lo"]) for v in (version, champion))
    word = "lower" if mine < theirs else "no lower"
    return mine >= theirs, f"its overall lower bound {mine:.3f} is {word} than version {champion.number}'s {theirs:.3f}"


def render_card(found: Dossier, params: RegisterParams, *, name: str, version: int | None, alias: str) -> str:
    """The model card, from `card.md.j2` in the models folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = get_settings().models_dir
    if not (folder / TEMPLATE).is_file():
        raise InputError(f"{folder / TEMPLATE}: no such file; run from the checkout or set PHOTOFLUX_MODELS_DIR")
    pages = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    pages.filters |= {"plain": _plain, "number": "{:.3f}".format}
    return pages.get_template(TEMPLATE).render(
        name=name, version=version, alias=alias, adapter=found.digest, code=code_version(), sign_off=params,
        **{part: getattr(found, part) for part in ("manifest", "decision", "evaluation", "audit")},
    )  # fmt: skip


@cache
def code_version() -> str:
    """The package's version and a digest of its source, which names the code where there is no git."""
    import photoflux

    root = Path(photoflux.__file__).parent
    state = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        state.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{photoflux.__version__}+{state.hexdigest()[:12]}"


def _dossier(adapter: Path, decision: Path, evaluation: Path, audit: Path, *, key: str) -> Dossier:
    """Read everything, and refuse documents about different adapters."""
    paths = {"decision": decision, "evaluation": evaluation, "audit": audit}
    documents = {kind: _read(path, kind, key) for kind, path in paths.items()}
    with opened(adapter, key=key) as plain:
        manifest, sha, curves = read_manifest(plain), digest(plain), _curves(plain)
    for kind, document in documents.items():
        about = document["hashes"]["adapter"]
        if about != sha:
            raise InputError(
                f"{paths[kind].name} is about adapter {about[:12]}, not {sha[:12]}; run {kind} on this one"
            )
    return Dossier(manifest, curves, **documents, digest=sha)


@contextmanager
def _record(
    found: Dossier, adapter: Path, documents: tuple[Path, ...], params: RegisterParams, *, key: str
) -> Iterator[Record]:
    """What goes into the registry; files of it exist while the block runs."""
    from photoflux.tracking import Record

    subject = found.manifest["subject"]
    name = params.name or subject["id"]
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        card = write_text(Path(scratch) / "card.md", render_card(found, params, name=name, version=None, alias=""))
        yield Record(
            adapter=adapter,
            digest=found.digest,
            subject=subject["id"],
            prompt=f"a photo of {subject['trigger']} {subject['class_noun']}",
            key=key,
            experiment=params.experiment,
            note=f"{found.decision['verdict']}: {found.decision['summary']}",
            params=found.manifest.get("params", {}),
            metrics=_metrics(found),
            curves=found.curves,
            tags=_tags(found, params),
            files={"card.md": card, **_files(adapter, documents)},
        )


def _tags(found: Dossier, params: RegisterParams) -> dict[str, str]:
    """The lineage of a version: what it was made from, with what, and how it was judged."""
    base, evaluation = found.manifest["base"], found.evaluation
    tags = {
        "data": evaluation["hashes"]["dataset"],
        "base": base["hash"],
        "base_name": base["name"],
        "params": json.dumps(found.manifest.get("params", {}), sort_keys=True),
        "code": code_version(),
        "verdict": found.decision["verdict"],
        "consent": found.manifest["subject"].get("consent", ""),
        "class_noun": found.manifest["subject"]["class_noun"],
        "trigger": found.manifest["subject"]["trigger"],
        "overall_lo": repr(found.overall_lo),
        "yardstick": found.yardstick,
    }
    signed = {"sign_off_by": params.sign_off_by, "sign_off_reason": params.sign_off_reason}
    return tags | (signed if not found.decision["promote"] else {})


def _metrics(found: Dossier) -> dict[str, float]:
    sides = (("", "point"), ("_lo", "lo"), ("_hi", "hi"))
    about = found.manifest
    trained = {f"training/{name}": float(about[name]) for name in ("step", "seconds") if name in about}
    return trained | {
        f"{name}{suffix}": float(value[side])
        for name, value in found.evaluation["metrics"].items()
        for suffix, side in sides
        if value.get(side) is not None
    }


def _files(adapter: Path, documents: tuple[Path, ...]) -> dict[str, Path]:
    """The documents, and the open report that lies beside each and beside the adapter."""
    named = dict(zip(("decision", "evaluation", "audit"), documents, strict=True))
    files = {f"{kind}.json": path for kind, path in named.items()}
    for kind, path in {"finetune": adapter, **named}.items():
        pages = [path.parent / name for name in REPORT_NAMES] + [path.with_name(f"{kind}.html")]
        files |= {f"reports/{kind}.html": page for page in pages if page.is_file()}
    return files


def _curves(adapter: Path) -> dict[str, list[tuple[int, float]]]:
    """The training curves that travel with the adapter: losses by step, and the scores of each candidate."""
    with tarfile.open(adapter, "r:") as tar:
        member = tar.extractfile(CURVES) if CURVES in tar.getnames() else None
        written = json.loads(member.read()) if member else {}
    candidates, steps = written.pop("candidates", []), written.pop("steps", [])
    curves = {f"loss/{name}": list(zip(steps, values, strict=False)) for name, values in written.items()}
    for row in candidates:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                curves.setdefault(f"candidate/{name}", []).append((row["step"], value))
    return curves


def _plain(value: object) -> str:
    """Text as one cell of a Markdown table: on one line, no markup."""
    return re.sub(r"([|<>`*_\[\]])", r"\\\1", " ".join(str(value).split()))


def _receipt(version: Version, alias: str, why: str, params: RegisterParams) -> dict[str, Any]:
    return {
        "kind": "receipt",
        "schema_version": SCHEMA_VERSION,
        "name": version.name,
        "version": version.number,
        "alias": alias,
        "why": why,
        "run_id": version.run_id,
        "adapter": version.digest,
        "experiment": params.experiment,
    }


def _read(path: Path, kind: str, key: str) -> dict[str, Any]:
    with opened(path, key=key) as plain:
        try:
            document = json.loads(plain.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}); run the {kind} step again") from error
    if not isinstance(document, dict) or document.get("kind", kind) != kind or "hashes" not in document:
        raise InputError(f"{path}: not a document of the {kind} step; run it again")
    return document
