from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from photoflux.errors import InputError
from photoflux.judges.encoders import Judges, Preprocessor
from photoflux.pocket.models import PocketConfig
from tests.pocket.untrained import init_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_base(tmp_path_factory.mktemp("models") / "tiny", config=PocketConfig.tiny()) / "judges"


@pytest.fixture(scope="module")
def judges(folder: Path) -> Judges:
    return Judges.load(folder, device="cpu")


def pictures(count: int, size: tuple[int, int] = (128, 128)) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)) for _ in range(count)]


def test_embeddings_are_unit_vectors_in_one_space(judges: Judges) -> None:
    images, words = judges.image_text(pictures(3)), judges.text(["a red dog", "a blue car"])
    assert images.shape[1] == words.shape[1]
    for vectors in (images, words, judges.identity(pictures(3))):
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(len(vectors)), atol=1e-5)


def test_attributes_are_probabilities_over_the_named_classes(judges: Judges) -> None:
    read = judges.attributes(pictures(3))
    assert set(read) == set(judges.classes)
    for name, values in read.items():
        assert values.shape == (3, len(judges.classes[name]))
        assert torch.allclose(values.sum(-1), torch.ones(3), atol=1e-5)


def test_batches_change_nothing(judges: Judges, folder: Path) -> None:
    one_by_one = Judges.load(folder, device="cpu")
    one_by_one.batch_size = 1
    images = pictures(5)
    assert torch.allclose(judges.identity(images), one_by_one.identity(images), atol=1e-5)
    assert torch.allclose(judges.image_text(images), one_by_one.image_text(images), atol=1e-5)


def test_image_features_equal_those_of_transformers(judges: Judges, folder: Path) -> None:
    from transformers import CLIPModel

    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures(2)])).permute(0, 3, 1, 2) / 255
    theirs = (
        CLIPModel.from_pretrained(folder / "clip")
        .float()
        .eval()(input_ids=torch.zeros(1, 8, dtype=torch.long), pixel_values=(pixels - 0.5) / 0.5)
    )
    assert torch.allclose(judges.image_text(pictures(2)), theirs.image_embeds, atol=1e-4)


def test_a_head_is_linear_on_the_pooled_picture(judges: Judges) -> None:
    pixels = judges._preprocess["attributes"](pictures(2))
    pooled = judges._encoders["attributes"](pixel_values=pixels).pooler_output.flatten(1)
    logits = pooled @ judges._weights["gender.weight"].T + judges._weights["gender.bias"]
    assert torch.allclose(judges.attributes(pictures(2))["gender"], logits.softmax(-1).detach(), atol=1e-5)


def test_preprocessing_resizes_the_short_side_and_crops_the_centre() -> None:
    """A wide picture whose centre is white and whose sides are black comes out white."""
    image = Image.new("RGB", (200, 100))
    image.paste(Image.new("RGB", (120, 100), "white"), (40, 0))
    pixels = Preprocessor(50, (0.5,) * 3, (0.5,) * 3)([image])
    assert pixels.shape == (1, 3, 50, 50)
    assert pixels[:, :, :, 2:-2].min() == pytest.approx(1)


def test_preprocessor_reads_both_ways_of_giving_a_size(tmp_path: Path) -> None:
    base = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    for settings, size in (
        ({"size": {"shortest_edge": 224}, "crop_size": {"height": 200}}, 200),
        ({"size": {"height": 96, "width": 96}}, 96),
        ({"size": 64}, 64),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(base | settings))
        assert Preprocessor.load(tmp_path).size_px == size


def test_attributes_can_be_read_with_words_alone(folder: Path, tmp_path: Path) -> None:
    """What production does before anybody has trained a head: softmax over the cosines with each class's phrases."""
    copied = Path(shutil.copytree(folder, tmp_path / "judges"))
    phrases = {"cat": ["a photo of a cat"], "car": ["a photo of a car", "a picture of a car"]}
    card = {"attributes": {"thing": ["cat", "car"]}, "heads": {"thing": {"encoder": "clip", "prompts": phrases}}}
    (copied / "judges.json").write_text(json.dumps(card))
    judges = Judges.load(copied, device="cpu")
    words = torch.stack([judges.text(phrases[name]).mean(0) for name in ("cat", "car")])
    cosines = judges.image_text(pictures(3)) @ torch.nn.functional.normalize(words, dim=-1).T
    assert torch.allclose(judges.attributes(pictures(3))["thing"], (100 * cosines).softmax(-1), atol=1e-4)
    assert judges.confusion == {}


def test_hash_follows_every_file(folder: Path, tmp_path: Path, judges: Judges) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "judges"))
    assert Judges.load(copied, device="cpu").hash == judges.hash
    (copied / "judges.json").write_text((copied / "judges.json").read_text() + " ")
    assert Judges.load(copied, device="cpu").hash != judges.hash


def test_nothing_to_judge_is_an_error(judges: Judges) -> None:
    with pytest.raises(InputError, match="no pictures"):
        judges.identity([])


def test_missing_parts_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match=r"judges\.json"):
        Judges.load(tmp_path)
    copied = Path(shutil.copytree(folder, tmp_path / "judges"))
    shutil.rmtree(copied / "identity")
    with pytest.raises(InputError, match="cannot be loaded"):
        Judges.load(copied)
