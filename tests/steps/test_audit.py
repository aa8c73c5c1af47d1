"""The audit step on a tiny base with real files; what its findings mean is tested on arrays in tests/judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photoflux.errors import InputError
from photoflux.fingerprint import of_base
from photoflux.flux.spec import load_spec
from photoflux.judges.encoders import Judges
from photoflux.manifest import digest, write_json
from photoflux.params import AuditParams
from photoflux.report import sealed_beside
from photoflux.steps.audit import limits_of, run
from tests.judges.tiny import make_adapter, make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter") / "adapter.tar", base, class_noun="dog")


def params(base: Path, **changes: Any) -> AuditParams:
    few = {"base": str(base), "prompts": "pocket", "profile": "smoke", "bootstrap": 200, "permutations": 200}
    return AuditParams(**(few | changes))


def audit(adapter: Path, folder: Path, how: AuditParams) -> dict[str, Any]:
    run(adapter, audit=folder / "audit.json", report=folder / "audit.html", params=how)
    return json.loads((folder / "audit.json").read_text())


@pytest.mark.slow
def test_a_random_base_draws_no_people_and_nothing_is_decided(base: Path, adapter: Path, tmp_path: Path) -> None:
    document = audit(adapter, tmp_path, params(base))
    assert (document["verdict"], document["severity"]) == ("INCONCLUSIVE", "inconclusive")
    assert document["hashes"]["adapter"] == digest(adapter)
    assert [finding["name"] for finding in document["findings"]] == ["gender", "band", "hair", "subject", "person"]
    assert "balanced accuracy" in document["findings"][0]["reason"]
    assert document["judge_card"] == "shipped with the judges"
    page = (tmp_path / "audit.html").read_text()
    assert "INCONCLUSIVE" in page
    assert 'src="http' not in page
    assert sealed_beside(tmp_path / "audit.html").exists()  # the photos are somebody's own


def test_an_adapter_that_does_nothing_moves_nothing(base: Path, tmp_path: Path) -> None:
    idle = make_adapter(tmp_path / "idle.tar", base, class_noun="dog", strength=0.0)
    document = audit(idle, tmp_path, params(base))
    assert document["control"] == {"people": 0.0, "without_people": 0.0}
    for finding in document["findings"][:3]:
        flips = np.array(finding["flips"])
        assert flips.sum() == np.trace(flips)
        assert finding["p"] == 1
        assert finding["excess"]["point"] == pytest.approx(0, abs=1e-9)
    assert document["findings"][3]["severity"] == "none"


@pytest.mark.slow
def test_the_same_inputs_give_the_same_audit(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert audit(adapter, tmp_path, params(base)) == audit(adapter, tmp_path, params(base))


@pytest.mark.slow
def test_a_persons_own_values_are_compared_but_never_stored(base: Path, tmp_path: Path) -> None:
    own = make_adapter(tmp_path / "person.tar", base, class_noun="person", strength=3.0)
    document = audit(own, tmp_path, params(base))
    assert all(finding["subject_leak"] for finding in document["findings"] if finding["name"] != "person")
    assert "subject_labels" not in json.dumps(document)
    assert sealed_beside(tmp_path / "audit.html").exists()
    assert (tmp_path / "audit.html").stat().st_size < sealed_beside(tmp_path / "audit.html").stat().st_size


def card_for(spec: Path, **changes: Any) -> dict[str, Any]:
    judges = Judges.load(Path(str(load_spec(str(spec)).judges)), device="cpu")
    tables = {
        name: {"classes": list(judges.classes[name]), "counts": (np.eye(len(judges.classes[name])) * 100).tolist()}
        for name in ("gender", "band", "hair")
    }
    return {"judges": judges.hash, "base": of_base(load_spec(str(spec))), "attributes": tables} | changes


@pytest.mark.slow
def test_a_judge_card_replaces_the_shipped_error_rates(base: Path, adapter: Path, tmp_path: Path) -> None:
    card = write_json(tmp_path / "card.json", card_for(base))
    document = audit(adapter, tmp_path, params(base, judge_card=str(card)))
    assert document["judge_card"] == "people's labels, card.json"
    assert document["hashes"]["judge_card"] == digest(card), "a card of the same name may say something else tomorrow"
    assert document["findings"][0]["judge_balanced_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"judges": "0" * 64}, "other judges"),
        ({"base": "0" * 64}, "another base"),
        ({"attributes": {"gender": {"classes": ["a", "b"], "counts": [[1, 0], [0, 1]]}}}, "other classes"),
        ({"attributes": {"gender": {}}}, "not a readable judge card"),
    ],
)
def test_a_judge_card_that_does_not_fit_is_refused(
    base: Path, adapter: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    card = write_json(tmp_path / "card.json", card_for(base, **changes))
    with pytest.raises(InputError, match=says):
        audit(adapter, tmp_path, params(base, judge_card=str(card)))
    assert not (tmp_path / "audit.json").exists()


def test_every_limit_comes_from_the_parameters() -> None:
    limits = limits_of(AuditParams(accuracy_min=0.8, drift_pass=0.05))
    assert (limits.accuracy_min, limits.drift_pass) == (0.8, 0.05)
    assert limits_of(AuditParams()) == type(limits)()


SEEDS = 16


@pytest.fixture(scope="module")
def crowd() -> tuple[Any, Any, Any]:
    """People as the trained pocket base draws them: prompts, judges, and what was seen in 16 pictures of each prompt."""
    from photoflux.flux.loading import load_pipeline
    from photoflux.judges.prompts import load_prompts
    from photoflux.judges.sampling import ImageSampler

    spec = load_spec("pocket")
    sampler = ImageSampler(load_pipeline(spec), spec, Judges.load(Path(str(spec.judges))), batch_size=16)
    prompts = load_prompts("pocket", folder=Path("models"))
    return prompts, sampler.judges, sampler.sample(prompts.people, seed=70_000, seeds=SEEDS).outputs


@pytest.mark.slow
def test_the_base_against_itself_confirms_at_most_three_of_twenty(crowd: tuple[Any, Any, Any]) -> None:
    """Twenty random halves of the seeds, held against the other halves."""
    from photoflux.judges.bias import Limits, People, audit_people
    from photoflux.steps.audit import shows_person

    prompts, judges, seen = crowd
    shown, rng, found = shows_person(seen, prompts, judges.classes), np.random.default_rng(0), []
    labels = {name: np.where(shown, seen.labels(name), -1) for name in prompts.audited}
    for _ in range(20):
        one, other = np.split(rng.permutation(SEEDS), 2)
        people = People(
            base={name: values[:, one] for name, values in labels.items()},
            tuned={name: values[:, other] for name, values in labels.items()},
            classes={name: judges.classes[name] for name in labels},
            confusion=judges.confusion,
            groups=[prompt.group for prompt in prompts.people],
            base_identity=seen.identity[:, one],
            tuned_identity=seen.identity[:, other],
            subject=seen.identity[0, :2],
        )
        audited = audit_people(people, limits=Limits(), resamples=300, permutations=300)
        found.append(any(finding.adjusted < 0.05 for finding in audited.findings))
    assert sum(found) <= 3


@pytest.mark.slow
def test_the_planted_skew_of_the_base_is_found_again(crowd: tuple[Any, Any, Any], record_property: Any) -> None:
    """Share of women by occupation against what was planted; 0.643 is significant at 5 % for eight occupations."""
    from scipy.stats import spearmanr

    from photoflux.judges.prevalence import corrected, row_rates, shares
    from photoflux.pocket import world
    from photoflux.steps.audit import shows_person

    prompts, judges, seen = crowd
    labels = np.where(shows_person(seen, prompts, judges.classes), seen.labels("gender"), -1)
    groups, rates = np.array([prompt.group for prompt in prompts.people]), row_rates(judges.confusion["gender"])
    woman = judges.classes["gender"].index("woman")
    drawn = [corrected(shares(labels[groups == name], 2), rates)[woman] for name in world.OCCUPATIONS]
    correlation = spearmanr(drawn, [world.SKEW[name][0] for name in world.OCCUPATIONS]).statistic
    record_property("spearman", float(correlation))
    assert correlation >= 0.643, dict(zip(world.OCCUPATIONS, np.round(drawn, 2), strict=True))
