from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from photoflux.errors import InputError
from photoflux.judges.prompts import SHAPES, PromptSet, load_prompts, seeds_for
from photoflux.pocket import world

MODELS = Path("models")
FORBIDDEN = {*world.GENDERS, *world.BANDS, *world.HAIR, "young", "old", "male", "female", "black", "white", "asian"}


@pytest.fixture(params=["pocket", "flux1-schnell"])
def prompts(request: pytest.FixtureRequest) -> PromptSet:
    return load_prompts(request.param, folder=MODELS)


def test_each_set_has_enough_different_prompts_for_release(prompts: PromptSet) -> None:
    count, _ = SHAPES["release"]
    for asked in (prompts.about("dog", trigger="sks", count=count), prompts.without("dog", count=count)):
        assert len({prompt.text for prompt in asked}) == count


def test_subject_and_class_prompts_differ_by_the_name_alone(prompts: PromptSet) -> None:
    subject, class_prompts = (prompts.about("dog", trigger=trigger, count=50) for trigger in ("sks", None))
    for named, unnamed in zip(subject, class_prompts, strict=True):
        assert named.text.replace("sks dog", "a dog") == unnamed.text
        assert named.labels["kind"] == "dog"


def test_unrelated_prompts_never_name_the_class(prompts: PromptSet) -> None:
    for noun in (*world.KINDS, "person"):
        for prompt in prompts.without(noun, count=50):
            assert noun not in prompt.text.split()
            assert prompt.labels.get("kind") != noun


def test_audit_prompts_name_no_gender_age_or_skin(prompts: PromptSet) -> None:
    words = {word.strip(",") for prompt in prompts.people for word in prompt.text.split()}
    assert not words & FORBIDDEN
    assert len({prompt.text for prompt in prompts.people}) == len(prompts.people)


def test_every_label_of_the_pocket_set_is_true_of_the_words_and_known_to_the_world() -> None:
    content = yaml.safe_load((MODELS / "prompts/pocket.yaml").read_text())
    for row in [*content["evaluate"]["subject"], *content["evaluate"]["unrelated"]]:
        text, labels = row["text"], row["labels"]
        assert world.PLACES[labels["place"]] in text
        assert any(text.startswith(opening) for opening in world.STYLES[labels["style"]])
        assert all(labels[name] in text.split() for name in ("colour", "gender", "occupation") if name in labels)
        assert labels.get("kind") in (None, "person", *world.KINDS)


def test_every_word_of_the_pocket_set_is_in_the_vocabulary() -> None:
    prompts = load_prompts("pocket", folder=MODELS)
    asked = [*prompts.about("dog", trigger="sks", count=99), *prompts.unrelated, *prompts.people, *prompts.no_people]
    assert {word for prompt in asked for word in prompt.text.split()} <= set(world.vocabulary())


def test_growing_a_grid_keeps_its_seeds() -> None:
    first, more = seeds_for(1000, 3, 4), seeds_for(1000, 3, 4, skip=4)
    assert first[:5] == [1000, 1001, 1002, 1003, 2000]
    assert more[0] == 1004
    assert not set(first) & set(more)


def test_article_follows_the_sound(tmp_path: Path) -> None:
    prompts = load_prompts("flux1-schnell", folder=MODELS)
    texts = {prompt.text for prompt in prompts.people}
    assert "a portrait photo of an engineer" in texts
    assert "a portrait photo of a surgeon" in texts


@pytest.mark.parametrize(
    ("content", "says"),
    [("evaluate: [", "not a prompt set"), ("audit: {}", "KeyError"), ("- 1", "not a prompt set")],
)
def test_a_broken_set_is_named(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(InputError, match=says):
        load_prompts(str(tmp_path / "x.yaml"), folder=MODELS)


def test_a_missing_set_says_where_sets_are() -> None:
    with pytest.raises(InputError, match="models/prompts"):
        load_prompts("nope", folder=MODELS)


def test_a_set_about_one_class_only_cannot_judge_that_class() -> None:
    prompts = load_prompts("pocket", folder=MODELS)
    dogs = tuple(p for p in prompts.unrelated if p.labels["kind"] == "dog")
    others = tuple(p for p in prompts.unrelated if p.labels["kind"] == "mug")
    for some, told in ((dogs, "only 0 unrelated"), ((*dogs, *others[:1] * 4), "only 4 unrelated")):
        with pytest.raises(InputError, match=told):
            PromptSet(**{**vars(prompts), "unrelated": some}).without("dog", count=5)
    assert len(PromptSet(**{**vars(prompts), "unrelated": (*dogs, *others[:1] * 5)}).without("dog", count=5)) == 5
