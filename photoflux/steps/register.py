"""register: record an adapter that passed its gate as a model version, with lineage, model card and alias."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photoflux.errors import GateRejected, InputError
from photoflux.judges.champion import is_better_than
from photoflux.manifest import digest, read_manifest, write_json, write_text
from photoflux.params import RegisterParams
from photoflux.settings import get_settings
from photoflux.signing import SignOff, check_signed
from photoflux.steps import StepResult
from photoflux.vault import committed, opened

if TYPE_CHECKING:
    from photoflux.tracking import Record, Registry, Version

SCHEMA_VERSION = 1
CURVES, TEMPLATE = "curves.json", "card.md.j2"
REPORT_FILES = ("report", "report.html")
"""Possible file names of a step's report, which lies beside the step's JSON."""


@dataclass(frozen=True)
class ModelRecord:
    """One adapter: its manifest and training curves, the documents of the steps that judged it, and its SHA-256."""

    manifest: dict[str, Any]
    curves: dict[str, list[tuple[int, float]]]
    decision: dict[str, Any]
    evaluation: dict[str, Any]
    audit: dict[str, Any]
    digest: str

    @property
    def overall(self) -> float:
        """The overall score: identity gained times prompts followed."""
        return float(self.evaluation["metrics"]["overall"]["point"])

    @property
    def compared_with(self) -> int:
        """Number of the version that was champion when this adapter was judged; 0 for none."""
        return int((self.decision["champion"] or {}).get("version", 0))

    def was_compared_with(self, version: Version) -> bool:
        """Whether a version is that champion: numbers begin anew with a name that was deleted."""
        champion = self.decision["champion"]
        return bool(champion) and version.number == self.compared_with and version.digest == champion["adapter"]


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
    sign_off: SignOff | None = None,
) -> StepResult:
    """Register the adapter as a model version, and make it champion where the gate decided so.

    Where another version became champion meanwhile, the better of the two is champion afterwards, whichever of them ends last. An
    adapter that was registered before keeps its version. Raises GateRejected with the failed rule when the decision is not to promote
    and no sign-off is possible or given; InputError when the documents belong to different adapters or the sign-off does not name the
    open findings. On any error the registry is as it was before.
    """
    from photoflux.tracking import CHALLENGER, CHAMPION, Registry

    model = _model_record(adapter, decision, evaluation, audit, key=key)
    check_promotable(model.decision, sign_off)
    name = params.name or model.manifest["subject"]["id"]
    registry = Registry()
    documents = (decision, evaluation, audit)
    with _record(model, adapter, documents, params, sign_off, key=key) as record, ExitStack() as undo:
        settled = _settled_claims(registry, name, model)
        version = undo.enter_context(_registered(registry, name, record, model, settled))
        # The champion, trained again to the same bytes, claims no place.
        claim = {} if model.was_compared_with(version) else _claim_tags(model)
        version = registry.set_tags(version, _verdict_tags(model, sign_off) | claim)
        undo.enter_context(registry.aliased(version, CHALLENGER))
        champion, why = _decide_champion(registry, version, model, undo, settled)
        registry.set_tags(version, {"settled": "true"})
        alias = CHAMPION if champion else CHALLENGER
        with committed(card, key=key) as card_file, committed(receipt, key=key) as receipt_file:
            write_text(card_file, render_card(model, sign_off, name=name, version=version.number, alias=alias))
            write_json(receipt_file, _receipt(version, alias, why, params))
    return StepResult(metrics={"version": version.number, "champion": float(champion), "overall": model.overall})


def check_promotable(decision: Mapping[str, Any], sign_off: SignOff | None) -> None:
    """Raises GateRejected unless the gate promotes, or a person signs for what it left open."""
    if decision["promote"]:
        return
    against = [reason for reason in decision["reasons"] if reason["verdict"] == decision["verdict"]]
    rule = "; ".join(str(reason["message"]) for reason in against[:3]) or "no rule is named"
    if not decision.get("sign_off_possible"):
        raise GateRejected(f"the gate said {decision['verdict']} and nothing is registered: {rule}")
    if sign_off is None:
        raise GateRejected(
            f"the gate said {decision['verdict']}: {rule}; a person may answer for it with `photoflux sign-off`"
        )
    check_signed(decision, sign_off)


def _claim_tags(model: ModelRecord) -> dict[str, str]:
    """Tags that tell concurrent registrations which champion this version was compared with and whether it is to replace it."""
    takes = str(model.decision["succeeds"]["takes"]).lower()
    return {"compared_with": str(model.compared_with), "takes": takes, "settled": "false"}


def _verdict_tags(model: ModelRecord, sign_off: SignOff | None) -> dict[str, str]:
    """What the gate said of a version this time, which may have been registered before, and who signed for it."""
    tags = {"verdict": str(model.decision["verdict"])}
    if model.decision["promote"] or sign_off is None:
        return tags
    findings = ", ".join(sorted(sign_off.findings))
    return tags | {"sign_off_by": sign_off.by, "sign_off_reason": sign_off.reason, "sign_off_findings": findings}


def _decide_champion(
    registry: Registry, version: Version, model: ModelRecord, undo: ExitStack, settled: Collection[int]
) -> tuple[bool, str]:
    """Carry out the gate's decision; returns whether the version is champion now, and why.

    Registries have no compare-and-set. So each version first tags its claim; then the best of all that claim the place of the same
    champion gets the alias; then the claims are read again, until there are no new ones: the last reader has seen all of them.
    Claims that were `settled` before do not count: somebody has moved the alias since.
    """
    from photoflux.tracking import CHAMPION

    succeeds = model.decision["succeeds"]
    present = registry.get_version(version.name, CHAMPION)
    if not succeeds["takes"] and present:
        return False, str(succeeds["why"])
    if model.was_compared_with(version) and present:
        if present.number == version.number:
            return True, str(succeeds["why"])
        return False, f"version {present.number} became champion meanwhile"
    rivals: list[Version] | None = None
    while rivals != (now := _rival_versions(registry, version, model.compared_with, settled)):
        rivals, present = now, registry.get_version(version.name, CHAMPION)
        known = {version.number, *(rival.number for rival in rivals)}
        if present and present.number not in known and not model.was_compared_with(present):
            return _compare_with_present(registry, version, present, model, undo)
        best = _best(registry, [version, *rivals], {version.number: model.evaluation})
        if best.number == version.number:
            undo.enter_context(registry.aliased(best, CHAMPION))
        elif present is None or present.number != best.number:
            # The rival's own claim, which stands if this registration fails; it may have been taken back since it was read.
            with suppress(InputError), registry.aliased(best, CHAMPION):
                pass
    if best.number != version.number:
        how = "is no worse" if _may_displace(version, best) else "passed by itself, this one did not"
        return False, f"version {best.number}, registered meanwhile, {how}"
    return True, str(succeeds["why"])


@contextmanager
def _registered(
    registry: Registry, name: str, record: Record, model: ModelRecord, settled: Collection[int]
) -> Iterator[Version]:
    """As `Registry.registered`; where the version is taken back, the champion's place goes to whom it would belong without it."""
    version: Version | None = None
    try:
        with registry.registered(name, record) as version:
            yield version
    except BaseException:
        with suppress(InputError):  # the registry itself may be what failed
            if version:
                _restore_champion(registry, version, model, settled)
        raise


def _restore_champion(registry: Registry, version: Version, model: ModelRecord, settled: Collection[int]) -> None:
    """Give the alias to the best of those that gave way to a version which is no more, else back to the champion of before."""
    from photoflux.tracking import CHAMPION

    present = registry.get_version(version.name, CHAMPION)
    if present and not model.was_compared_with(present):
        return
    if rivals := _rival_versions(registry, version, model.compared_with, settled):
        heir: Version | None = _best(registry, rivals, {})
    else:
        before = registry.get_version(version.name, str(model.compared_with)) if model.compared_with else None
        heir = before if before and model.was_compared_with(before) else None
    if heir and (present is None or present.number != heir.number):
        with registry.aliased(heir, CHAMPION):
            pass


def _settled_claims(registry: Registry, name: str, model: ModelRecord) -> set[int]:
    """Versions whose claim to the same champion's place was settled before and that are not champion now: it counts no more."""
    from photoflux.tracking import CHAMPION

    claims = [v for v in _claims(registry, name, model.compared_with) if v.tags.get("settled") == "true"]
    # Read after the claims: whoever had settled one was champion then, or another one's better was.
    present = registry.get_version(name, CHAMPION)
    return {v.number for v in claims if present is None or v.number != present.number}


def _rival_versions(
    registry: Registry, version: Version, compared_with: int, settled: Collection[int]
) -> list[Version]:
    """The other versions that claim the place of the same champion, oldest first, but for those whose claim is `settled`."""
    return [v for v in _claims(registry, version.name, compared_with) if v.number not in (version.number, *settled)]


def _claims(registry: Registry, name: str, compared_with: int) -> list[Version]:
    """The versions that claim the place of one champion, oldest first."""
    claim = {"takes": "true", "compared_with": str(compared_with)}
    return [version for version in registry.versions(name) if claim.items() <= dict(version.tags).items()]


def _best(registry: Registry, versions: Sequence[Version], documents: dict[int, dict[str, Any]]) -> Version:
    """The best of some versions; the older one where two are equal or cannot be compared. `documents`: evaluations at hand."""
    first, *others = sorted(versions, key=lambda one: one.number)
    for other in others:
        for one in (first, other):
            documents.setdefault(one.number, _evaluation_of(registry, one))
        if _may_displace(other, first) and is_better_than(documents[other.number], documents[first.number]):
            first = other
    return first


def _may_displace(version: Version, champion: Version) -> bool:
    """A version that a person signed for does not displace one that passed by itself, whatever their scores: as in `gate.succeeds`."""
    return version.tags.get("verdict") == "PASS" or champion.tags.get("verdict") != "PASS"


def _compare_with_present(
    registry: Registry, version: Version, present: Version, model: ModelRecord, undo: ExitStack
) -> tuple[bool, str]:
    """For a version whose champion was replaced meanwhile: it becomes champion if it is better than the present one."""
    from photoflux.tracking import CHAMPION

    if not _may_displace(version, present):
        return False, f"version {present.number}, which became champion meanwhile, passed by itself, this one did not"
    better = is_better_than(model.evaluation, _evaluation_of(registry, present))
    if better:
        undo.enter_context(registry.aliased(version, CHAMPION))
        return True, f"it is better than version {present.number}, which became champion meanwhile"
    if better is None:
        why = "was measured on other photos or otherwise; run again to have them compared"
        return False, f"version {present.number} became champion meanwhile, and {why}"
    return False, f"version {present.number}, which became champion meanwhile, is no worse"


def _evaluation_of(registry: Registry, version: Version) -> dict[str, Any]:
    """The evaluation document recorded with a version; empty where there is none."""
    file = registry.download_document(version, "evaluation.json")
    return _read(file, "evaluation", version.tags["key"]) if file else {}


def render_card(model: ModelRecord, sign_off: SignOff | None, *, name: str, version: int | None, alias: str) -> str:
    """The model card, from `card.md.j2` in the models folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = get_settings().models_dir
    if not (folder / TEMPLATE).is_file():
        raise InputError(f"{folder / TEMPLATE}: no such file; run from the checkout or set PHOTOFLUX_MODELS_DIR")
    templates = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    templates.filters |= {"markdown_cell": _markdown_cell, "number": "{:.3f}".format}
    return templates.get_template(TEMPLATE).render(
        name=name,
        version=version,
        alias=alias,
        adapter=model.digest,
        code=code_version(),
        sign_off=sign_off,
        **{part: getattr(model, part) for part in ("manifest", "decision", "evaluation", "audit")},
    )


@cache
def code_version() -> str:
    """The package's version and a digest of its source, which names the code where there is no git."""
    import photoflux

    root = Path(photoflux.__file__).parent
    state = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        state.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{photoflux.__version__}+{state.hexdigest()[:12]}"


def _model_record(adapter: Path, decision: Path, evaluation: Path, audit: Path, *, key: str) -> ModelRecord:
    """Read adapter and documents. Raises InputError when a document is about another adapter."""
    paths = {"decision": decision, "evaluation": evaluation, "audit": audit}
    documents = {kind: _read(path, kind, key) for kind, path in paths.items()}
    with opened(adapter, key=key) as unsealed:
        manifest, sha, curves = read_manifest(unsealed), digest(unsealed), _curves(unsealed)
    for kind, document in documents.items():
        judged_sha = document["hashes"]["adapter"]
        if judged_sha != sha:
            raise InputError(
                f"{paths[kind].name} is about adapter {judged_sha[:12]}, not {sha[:12]}; run {kind} on this one"
            )
    return ModelRecord(manifest, curves, **documents, digest=sha)


@contextmanager
def _record(
    model: ModelRecord,
    adapter: Path,
    documents: tuple[Path, ...],
    params: RegisterParams,
    sign_off: SignOff | None,
    *,
    key: str,
) -> Iterator[Record]:
    """The registry's record; its files exist while the block runs."""
    from photoflux.tracking import Record

    subject = model.manifest["subject"]
    name = params.name or subject["id"]
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        card = write_text(Path(scratch) / "card.md", render_card(model, sign_off, name=name, version=None, alias=""))
        yield Record(
            adapter=adapter,
            digest=model.digest,
            subject=subject["id"],
            prompt=f"a photo of {subject['trigger']} {subject['class_noun']}",
            key=key,
            experiment=params.experiment,
            note=f"{model.decision['verdict']}: {model.decision['summary']}",
            params=model.manifest.get("params", {}),
            metrics=_metrics(model),
            curves=model.curves,
            tags=_tags(model, sign_off),
            files={"card.md": card, **_files(adapter, documents)},
        )


def _tags(model: ModelRecord, sign_off: SignOff | None) -> dict[str, str]:
    """The lineage of a version: what it was made from, with what, and how it was judged."""
    base, evaluation = model.manifest["base"], model.evaluation
    return {
        "data": evaluation["hashes"]["dataset"],
        "base": base["hash"],
        "base_name": base["name"],
        "params": json.dumps(model.manifest.get("params", {}), sort_keys=True),
        "code": code_version(),
        "consent": model.manifest["subject"].get("consent", ""),
        "class_noun": model.manifest["subject"]["class_noun"],
        "trigger": model.manifest["subject"]["trigger"],
        "overall": repr(model.overall),
        "fingerprint": model.evaluation["fingerprint"],
        **_claim_tags(model),
        **_verdict_tags(model, sign_off),
    }


def _metrics(model: ModelRecord) -> dict[str, float]:
    sides = (("", "point"), ("_lo", "lo"), ("_hi", "hi"))
    trained = {"training/step": float(model.manifest["step"])} if "step" in model.manifest else {}
    return trained | {
        f"{name}{suffix}": float(value[side])
        for name, value in model.evaluation["metrics"].items()
        for suffix, side in sides
        if value.get(side) is not None
    }


def _files(adapter: Path, documents: tuple[Path, ...]) -> dict[str, Path]:
    """The documents, and the open report that lies beside each and beside the adapter."""
    named = dict(zip(("decision", "evaluation", "audit"), documents, strict=True))
    files = {f"{kind}.json": path for kind, path in named.items()}
    for kind, path in {"finetune": adapter, **named}.items():
        pages = [path.parent / name for name in REPORT_FILES] + [path.with_name(f"{kind}.html")]
        files |= {f"reports/{kind}.html": page for page in pages if page.is_file()}
    return files


def _curves(adapter: Path) -> dict[str, list[tuple[int, float]]]:
    """Training curves from the adapter's artifact: losses by training step, and the scores of each checkpoint."""
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


def _markdown_cell(value: object) -> str:
    """Text as one cell of a Markdown table: on one line, with markup escaped."""
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
    with opened(path, key=key) as unsealed:
        try:
            document = json.loads(unsealed.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}); run the {kind} step again") from error
    if not isinstance(document, dict) or document.get("kind", kind) != kind or "hashes" not in document:
        raise InputError(f"{path}: not a document of the {kind} step; run it again")
    return document
