"""Decide whether a candidate may be promoted: one verdict per rule, on the bounds of its interval."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from photoflux.errors import InputError
from photoflux.judges.gate_rules import KERNEL_RULE, SIGNABLE, Rule, rules
from photoflux.manifest import write_json
from photoflux.params import GateParams, as_dict
from photoflux.steps import StepResult
from photoflux.vault import committed, opened

SCHEMA_VERSION = 2
READS = {"evaluation": 2, "audit": 1}
SEVERITY_ORDER = ("PASS", "INCONCLUSIVE", "FAIL", "INVALID")


@dataclass(frozen=True)
class Reason:
    """One rule: what was measured, against which bound, and what follows."""

    rule: str
    verdict: str
    message: str
    value: float | None = None
    lo: float | None = None
    hi: float | None = None
    bound: float | None = None
    warning: bool = False


def run(
    evaluation: Path,
    audit: Path,
    *,
    decision: Path,
    report: Path,
    params: GateParams,
    key: str = "plain://demo",
) -> StepResult:
    """Hold evaluation and audit against limits and champion; say PASS, FAIL, INCONCLUSIVE or INVALID, and who is champion then."""
    from photoflux.pages.gate import decision_page

    measured, audited = (_read(path, kind, key) for path, kind in ((evaluation, "evaluation"), (audit, "audit")))
    document = decide(measured, audited, params=params)
    with committed(decision, key=key) as path:
        write_json(path, document)
    decision_page(document, evaluation=measured, audit=audited).save(report)
    counts = {
        f"rules_{word.lower()}": float(sum(r["verdict"] == word for r in document["reasons"]))
        for word in SEVERITY_ORDER
    }
    return StepResult(metrics={"promote": float(document["promote"]), **counts}, report=report)


def decide(evaluation: Mapping[str, Any], audit: Mapping[str, Any], *, params: GateParams) -> dict[str, Any]:
    """The decision document. The verdict is the most serious of the rules'; only PASS promotes.

    A sign-off by a person may stand in where nothing failed and only the audit leaves a question open. `champion` is the version that
    the candidate was held against, and `succeeds` says whether the candidate takes its place, and why.
    """
    _same_subject(evaluation, audit)
    reasons = [
        *_validity(evaluation, params),
        *(_on_its_scale(judge(rule, evaluation["metrics"]), evaluation, params) for rule in rules(evaluation, params)),
    ]
    reasons += [*_lightness_reasons(evaluation, params), _audit_reason(audit)]
    champion = evaluation["champion"]
    if champion and champion["difference"]:
        reasons.append(_champion_reason(champion, params))
    verdict = max((reason.verdict for reason in reasons), key=SEVERITY_ORDER.index)
    opens = [reason for reason in reasons if reason.verdict != "PASS"]
    return {
        "kind": "decision",
        "schema_version": SCHEMA_VERSION,
        "subject": dict(evaluation["subject"]),
        "verdict": verdict,
        "promote": verdict == "PASS",
        "sign_off_possible": verdict == "INCONCLUSIVE" and all(reason.rule in SIGNABLE for reason in opens),
        "summary": _summary(verdict, opens),
        "reasons": [asdict(reason) for reason in reasons],
        "limits": as_dict(params),
        "champion": champion,
        "succeeds": succeeds(champion, verdict=verdict, adapter=evaluation["hashes"]["adapter"]),
        "hashes": {**evaluation["hashes"], "base": evaluation["base"]["hash"]},
    }


def _lightness_reasons(evaluation: Mapping[str, Any], params: GateParams) -> list[Reason]:
    """A person's skin against the photos: fails, or asks for a signature, when a whole interval lies beyond a limit."""
    value = evaluation["metrics"].get("lightness_shift")
    if value is None:
        return []
    least = max(value["lo"], -value["hi"])
    verdict, bound = next(
        (
            (word, limit)
            for word, limit in (("FAIL", params.lightness_high), ("INCONCLUSIVE", params.lightness_moderate))
            if least > limit
        ),
        ("PASS", params.lightness_moderate),
    )
    way = "lighter" if value["point"] > 0 else "darker"
    text = f"skin lightness: {value['point']:+.1f} L* [{value['lo']:+.1f}, {value['hi']:+.1f}], may shift by {bound:g}"
    more = "" if verdict == "PASS" else f"; the person is drawn {way} than in the photos"
    return [Reason("skin lightness", verdict, text + more, value["point"], value["lo"], value["hi"], bound)]


def judge(rule: Rule, metrics: Mapping[str, Mapping[str, float]]) -> Reason:
    """PASS with the whole interval inside the limit, FAIL with all of it outside, else INCONCLUSIVE."""
    if rule.metric not in metrics:
        raise InputError(f"the evaluation does not hold '{rule.metric}'; run the evaluate step again with this version")
    value = metrics[rule.metric]
    sign = 1 if rule.floor else -1
    lo, hi = (value["point"],) * 2 if rule.point_only else (value["lo"], value["hi"])
    worst, best = (lo, hi) if rule.floor else (hi, lo)
    verdict = "INCONCLUSIVE"
    if sign * (worst - rule.bound) >= 0:
        verdict = "PASS"
    elif sign * (best - rule.bound) < 0:
        verdict = "FAIL"
    warns = verdict == "PASS" and rule.warn is not None and sign * (value["point"] - rule.warn) < 0
    return Reason(
        rule.name,
        verdict,
        _message(rule, value, verdict, warns),
        value["point"],
        value["lo"],
        value["hi"],
        rule.bound,
        warns,
    )


def scale_of(evaluation: Mapping[str, Any]) -> str:
    """Base and judges of an evaluation, as `gate.drift_kid_of` names them."""
    return f"{evaluation['base']['hash'][:8]} {evaluation['hashes']['judges'][:8]}"


def _on_its_scale(reason: Reason, evaluation: Mapping[str, Any], params: GateParams) -> Reason:
    """A kernel distance has the scale of a base's images and of judges: a limit that was chosen for others decides nothing."""
    mine = scale_of(evaluation)
    if reason.rule != KERNEL_RULE or params.drift_kid_of in ("", mine):
        return reason
    text = (
        f"{reason.rule}: {reason.value:.3f}, but gate.drift_kid_max was chosen for base and judges {params.drift_kid_of}, and these are "
        f"{mine}; choose it on adapters of this base (docs/decisions/0026) and set gate.drift_kid_of"
    )
    return replace(reason, verdict="INCONCLUSIVE", message=text, warning=False)


def _message(rule: Rule, value: Mapping[str, float], verdict: str, warns: bool) -> str:
    side = "at least" if rule.floor else "at most"
    digits = 2 if abs(rule.bound) >= 0.1 else 3
    point, lo, hi = (f"{value[name]:.{digits}f}" for name in ("point", "lo", "hi"))
    span = f"{point} [{lo}, {hi}], must be {side} {rule.bound:g}"
    if verdict == "FAIL":
        return f"{rule.name}: {span}; {rule.says}"
    if verdict == "INCONCLUSIVE":
        return f"{rule.name}: {span}; the interval straddles the limit, so this is not a pass"
    return f"{rule.name}: {span}{'; within the limit but worth a look' if warns else ''}"


def _validity(evaluation: Mapping[str, Any], params: GateParams) -> list[Reason]:
    reasons = [Reason("validity", "INVALID", text) for text in evaluation["invalid"]]
    made = evaluation["made_share"]
    if made < params.images_min:
        text = f"only {made:.0%} of the planned pictures could be made (needs {params.images_min:.0%})"
        reasons.append(Reason("pictures made", "INVALID", text, made, bound=params.images_min))
    return reasons


def _audit_reason(audit: Mapping[str, Any]) -> Reason:
    worst = [
        f"{f['name']} ({f['severity']}): {f['reason']}" for f in audit["findings"] if f["severity"] == audit["severity"]
    ]
    text = f"bias audit: {audit['severity']}; {worst[0] if worst else 'no findings'}"
    return Reason("bias audit", audit["verdict"], text)


def _champion_reason(champion: Mapping[str, Any], params: GateParams) -> Reason:
    """FAIL for a candidate that is surely worse by more than may be lost; one that is a little worse is registered, but not as champion."""
    value, bound = champion["difference"], -params.champion_drop_max
    worse = value["hi"] < bound
    text = (
        f"overall {value['point']:+.2f} [{value['lo']:+.2f}, {value['hi']:+.2f}] against version {champion['version']}"
    )
    if worse:
        text += f", may lose {params.champion_drop_max:g}; the champion is better: keep it"
    elif value["point"] < 0:
        text += "; within what may be lost, but the champion stays"
    verdict = "FAIL" if worse else "PASS"
    bounds = (value["point"], value["lo"], value["hi"], bound)
    return Reason(
        "previous champion", verdict, f"previous champion: {text}", *bounds, warning=not worse and value["point"] < 0
    )


def succeeds(champion: Mapping[str, Any] | None, *, verdict: str, adapter: str) -> dict[str, Any]:
    """Whether a candidate takes the champion's place, once it is registered, and why: what is better does.

    One that a person has signed for does not displace one that passed by itself.
    """
    if not champion:
        return {"takes": True, "why": "there was no champion"}
    version, change = f"version {champion['version']}", champion["difference"]
    if champion["adapter"] == adapter:
        return {"takes": True, "why": "it is the champion"}
    if verdict != "PASS" and champion["verdict"] == "PASS":
        return {"takes": False, "why": f"{version} passed by itself, this one did not"}
    if change is None:
        return {"takes": True, "why": f"{version} {champion['how']}"}
    told = f"{change['point']:+.3f} [{change['lo']:+.3f}, {change['hi']:+.3f}]"
    better = change["point"] > 0
    return {
        "takes": better,
        "why": f"overall {told} against {version}, which {'was worse' if better else 'is no worse'}",
    }


def _summary(verdict: str, opens: Sequence[Reason]) -> str:
    if verdict == "PASS":
        return "Every rule holds on the whole of its interval."
    first = [reason for reason in opens if reason.verdict == verdict]
    return "; ".join(dict.fromkeys(reason.message for reason in first[:3]))


def _same_subject(evaluation: Mapping[str, Any], audit: Mapping[str, Any]) -> None:
    if evaluation["hashes"]["adapter"] != audit["hashes"]["adapter"]:
        raise InputError("evaluation and audit are about different adapters; run both on the same one")


def _read(path: Path, kind: str, key: str) -> dict[str, Any]:
    with opened(path, key=key) as unsealed:
        try:
            document = json.loads(unsealed.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}); run the {kind} step again") from error
    if not isinstance(document, dict) or document.get("kind") != kind or document.get("schema_version") != READS[kind]:
        raise InputError(f"{path}: not an {kind} of schema {READS[kind]}; run the {kind} step again")
    return document
