"""Enter an adapter that its gate let through in the registry, with its lineage, its card and its alias."""

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
from photoflux.judges.champion import is_better
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
REPORT_NAMES = ("report", "report.html")
"""What a step calls its page; it lies beside the step's JSON."""


@dataclass(frozen=True)
class ModelRecord:
    """All that is known about one adapter: the documents of the steps that made and judged it, and its digest."""

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
    def held_against(self) -> int:
        """The version that was champion when this adapter was judged; 0 for none."""
        return int((self.decision["champion"] or {}).get("version", 0))

    def was_held_against(self, version: Version) -> bool:
        """Whether a version is that champion: numbers begin anew with a name that was deleted."""
        about = self.decision["champion"]
        return bool(about) and version.number == self.held_against and version.digest == about["adapter"]


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
    """Register the adapter as a model version, and carry out what the gate decided about the champion.

    Where another version became champion meanwhile, the better of the two is champion afterwards, whichever of them ends last. The same
    adapter registered again is the same version. Raises GateRejected naming the rule that stands against it when its decision is not to
    promote and no sign-off is possible or given; InputError when the documents belong to different adapters or the sign-off does not name
    what it answers for. On any error the registry is as it was before.
    """
    from photoflux.tracking import CHALLENGER, CHAMPION, Registry

    found = _model_record(adapter, decision, evaluation, audit, key=key)
    check_promotable(found.decision, sign_off)
    name = params.name or found.manifest["subject"]["id"]
    registry = Registry()
    documents = (decision, evaluation, audit)
    with _record(found, adapter, documents, params, sign_off, key=key) as record, ExitStack() as undo:
        over = _over(registry, name, found)
        version = undo.enter_context(_entered(registry, name, record, found, over))
        claim = {} if found.was_held_against(version) else _claim(found)  # the champion, trained again, claims no place
        version = registry.tag(version, _verdict(found, sign_off) | claim)
        undo.enter_context(registry.pointed(version, CHALLENGER))
        champion, why = _settle(registry, version, found, undo, over)
        registry.tag(version, {"settled": "true"})
        alias = CHAMPION if champion else CHALLENGER
        with committed(card, key=key) as page, committed(receipt, key=key) as slip:
            write_text(page, render_card(found, sign_off, name=name, version=version.number, alias=alias))
            write_json(slip, _receipt(version, alias, why, params))
    return StepResult(metrics={"version": version.number, "champion": float(champion), "overall": found.overall})


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


def _claim(found: ModelRecord) -> dict[str, str]:
    """What a version says of the champion's place, so that others that were judged at the same time can see it."""
    takes = str(found.decision["succeeds"]["takes"]).lower()
    return {"held_against": str(found.held_against), "takes": takes, "settled": "false"}


def _verdict(found: ModelRecord, sign_off: SignOff | None) -> dict[str, str]:
    """What the gate said of a version this time, which may have been registered before, and who signed for it."""
    told = {"verdict": str(found.decision["verdict"])}
    if found.decision["promote"] or sign_off is None:
        return told
    findings = ", ".join(sorted(sign_off.findings))
    return told | {"sign_off_by": sign_off.by, "sign_off_reason": sign_off.reason, "sign_off_findings": findings}


def _settle(
    registry: Registry, version: Version, found: ModelRecord, undo: ExitStack, over: Collection[int]
) -> tuple[bool, str]:
    """Carry out the gate's decision; returns whether the version is champion now, and why.

    Registries have no compare-and-set. So a version says first that it claims the place, then the best of all that claim it against the
    same champion is given the alias, then is looked whether others have claimed it meanwhile: whoever looks last has seen all claims.
    Claims that were `over` before do not count: somebody has moved the alias since they were settled.
    """
    from photoflux.tracking import CHAMPION

    succeeds = found.decision["succeeds"]
    present = registry.at(version.name, CHAMPION)
    if not succeeds["takes"] and present:
        return False, str(succeeds["why"])
    if found.was_held_against(version) and present:
        stays = present.number == version.number
        return stays, str(succeeds["why"]) if stays else f"version {present.number} became champion meanwhile"
    rivals: list[Version] | None = None
    while rivals != (now := _rivals(registry, version, found.held_against, over)):
        rivals, present = now, registry.at(version.name, CHAMPION)
        known = {version.number, *(rival.number for rival in rivals)}
        if present and present.number not in known and not found.was_held_against(present):
            return _moved_on(registry, version, present, found, undo)
        best = _best(registry, [version, *rivals], {version.number: found.evaluation})
        if best.number == version.number:
            undo.enter_context(registry.pointed(best, CHAMPION))
        elif present is None or present.number != best.number:
            with suppress(InputError), registry.pointed(best, CHAMPION):
                pass  # its own claim, which stands however this one ends; it may have been taken back since it was seen
    if best.number != version.number:
        how = "is no worse" if _may_displace(version, best) else "passed by itself, this one did not"
        return False, f"version {best.number}, registered meanwhile, {how}"
    return True, str(succeeds["why"])


@contextmanager
def _entered(
    registry: Registry, name: str, record: Record, found: ModelRecord, over: Collection[int]
) -> Iterator[Version]:
    """As `Registry.entered`; where the version is taken back, the champion's place goes to whom it would belong without it."""
    version: Version | None = None
    try:
        with registry.entered(name, record) as version:
            yield version
    except BaseException:
        with suppress(InputError):  # the registry itself may be what failed
            if version:
                _leave(registry, version, found, over)
        raise


def _leave(registry: Registry, version: Version, found: ModelRecord, over: Collection[int]) -> None:
    """Give the alias to the best of those that gave way to a version which is no more, else back to the champion of before."""
    from photoflux.tracking import CHAMPION

    present = registry.at(version.name, CHAMPION)
    if present and not found.was_held_against(present):
        return
    if rivals := _rivals(registry, version, found.held_against, over):
        heir: Version | None = _best(registry, rivals, {})
    else:
        before = registry.at(version.name, str(found.held_against)) if found.held_against else None
        heir = before if before and found.was_held_against(before) else None
    if heir and (present is None or present.number != heir.number):
        with registry.pointed(heir, CHAMPION):
            pass


def _over(registry: Registry, name: str, found: ModelRecord) -> set[int]:
    """Versions whose claim to the same champion's place was settled before and that are not champion now: it counts no more."""
    from photoflux.tracking import CHAMPION

    claims = [v for v in _claims(registry, name, found.held_against) if v.tags.get("settled") == "true"]
    present = registry.at(
        name, CHAMPION
    )  # asked after them: who had settled a claim was champion then, or another's better
    return {v.number for v in claims if present is None or v.number != present.number}


def _rivals(registry: Registry, version: Version, held_against: int, over: Collection[int]) -> list[Version]:
    """The other versions that claim the place of the same champion, oldest first, but for those whose claim is `over`."""
    return [v for v in _claims(registry, version.name, held_against) if v.number not in (version.number, *over)]


def _claims(registry: Registry, name: str, held_against: int) -> list[Version]:
    """The versions that claim the place of one champion, oldest first."""
    claim = {"takes": "true", "held_against": str(held_against)}
    return [version for version in registry.versions(name) if claim.items() <= dict(version.tags).items()]


def _best(registry: Registry, versions: Sequence[Version], documents: dict[int, dict[str, Any]]) -> Version:
    """The best of some versions; the older one where two are equal or cannot be compared. `documents`: evaluations at hand."""
    first, *others = sorted(versions, key=lambda one: one.number)
    for other in others:
        for one in (first, other):
            documents.setdefault(one.number, _evaluation_of(registry, one))
        if _may_displace(other, first) and is_better(documents[other.number], documents[first.number]):
            first = other
    return first


def _may_displace(version: Version, champion: Version) -> bool:
    """One that a person signed for does not displace one that passed by itself, whatever their scores: as in `gate.succeeds`."""
    return version.tags.get("verdict") == "PASS" or champion.tags.get("verdict") != "PASS"


def _moved_on(
    registry: Registry, version: Version, present: Version, found: ModelRecord, undo: ExitStack
) -> tuple[bool, str]:
    """The champion that this version was judged against is champion no more: it has to be better than the present one."""
    from photoflux.tracking import CHAMPION

    if not _may_displace(version, present):
        return False, f"version {present.number}, which became champion meanwhile, passed by itself, this one did not"
    better = is_better(found.evaluation, _evaluation_of(registry, present))
    if better:
        undo.enter_context(registry.pointed(version, CHAMPION))
        return True, f"it is better than version {present.number}, which became champion meanwhile"
    if better is None:
        why = "was measured on other photos or otherwise; run again to have them compared"
        return False, f"version {present.number} became champion meanwhile, and {why}"
    return False, f"version {present.number}, which became champion meanwhile, is no worse"


def _evaluation_of(registry: Registry, version: Version) -> dict[str, Any]:
    """The evaluation that a version was registered with; empty where there is none."""
    kept = registry.document(version, "evaluation.json")
    return _read(kept, "evaluation", version.tags["key"]) if kept else {}


def render_card(found: ModelRecord, sign_off: SignOff | None, *, name: str, version: int | None, alias: str) -> str:
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
        name=name,
        version=version,
        alias=alias,
        adapter=found.digest,
        code=code_version(),
        sign_off=sign_off,
        **{part: getattr(found, part) for part in ("manifest", "decision", "evaluation", "audit")},
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
    return ModelRecord(manifest, curves, **documents, digest=sha)


@contextmanager
def _record(
    found: ModelRecord,
    adapter: Path,
    documents: tuple[Path, ...],
    params: RegisterParams,
    sign_off: SignOff | None,
    *,
    key: str,
) -> Iterator[Record]:
    """What goes into the registry; files of it exist while the block runs."""
    from photoflux.tracking import Record

    subject = found.manifest["subject"]
    name = params.name or subject["id"]
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        card = write_text(Path(scratch) / "card.md", render_card(found, sign_off, name=name, version=None, alias=""))
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
            tags=_tags(found, sign_off),
            files={"card.md": card, **_files(adapter, documents)},
        )


def _tags(found: ModelRecord, sign_off: SignOff | None) -> dict[str, str]:
    """The lineage of a version: what it was made from, with what, and how it was judged."""
    base, evaluation = found.manifest["base"], found.evaluation
    return {
        "data": evaluation["hashes"]["dataset"],
        "base": base["hash"],
        "base_name": base["name"],
        "params": json.dumps(found.manifest.get("params", {}), sort_keys=True),
        "code": code_version(),
        "consent": found.manifest["subject"].get("consent", ""),
        "class_noun": found.manifest["subject"]["class_noun"],
        "trigger": found.manifest["subject"]["trigger"],
        "overall": repr(found.overall),
        "fingerprint": found.evaluation["fingerprint"],
        **_claim(found),
        **_verdict(found, sign_off),
    }


def _metrics(found: ModelRecord) -> dict[str, float]:
    sides = (("", "point"), ("_lo", "lo"), ("_hi", "hi"))
    trained = {"training/step": float(found.manifest["step"])} if "step" in found.manifest else {}
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
