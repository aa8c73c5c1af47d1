"""What training reads: latents encoded once per picture, prompts without the trigger, and what the base said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from photoflux.errors import InputError
from photoflux.flux import data
from photoflux.flux.loading import load_pipeline
from photoflux.flux.lora import attach, save_adapter
from photoflux.flux.module import Batch, TrainingBatches, in_turn
from photoflux.flux.sampling import noise_for
from photoflux.flux.spec import BaseSpec
from photoflux.flux.step import pack
from photoflux.flux.text import encode_prompts
from photoflux.params import FinetuneParams
from photoflux.vault.sealed_store import SealedStore
from tests.flux.training import KEY, pictures, prepare, randomise, small, train_photos

if TYPE_CHECKING:
    from diffusers import FluxPipeline

PROMPTS = ["a photo of a dog", "a cat in space", "a red mug on the beach"]


# Latents


def test_latents_are_the_mode_shifted_then_scaled(pipe: FluxPipeline) -> None:
    """(mean - shift) x scale with the factors of FLUX.1; the mean is the first half of the encoder's output."""
    pipe.vae.register_to_config(scaling_factor=0.3611, shift_factor=0.1159)
    images = pictures(2)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2) / 127.5 - 1)
    with torch.no_grad():
        mean = pipe.vae.encoder(pixels.float())[:, :16]
    found = data.encode_images(pipe.vae, images)
    assert found.shape == (2, 16, 16, 16)
    torch.testing.assert_close(found, (mean - 0.1159) * 0.3611, atol=1e-5, rtol=0)


def test_latents_are_float32_of_a_coarser_base(pipe: FluxPipeline) -> None:
    """The autoencoder encodes in float32 and gets its own type back."""
    exact = data.encode_images(pipe.vae, pictures(1))
    pipe.vae.to(torch.bfloat16)
    found = data.encode_images(pipe.vae, pictures(1))
    assert found.dtype == torch.float32
    assert pipe.vae.dtype == torch.bfloat16
    assert (found - exact).abs().max() < 0.1


def test_encoding_is_quiet(pipe: FluxPipeline, caplog: pytest.LogCaptureFixture) -> None:
    """A float32 base is not cast, so diffusers has no cast to warn about."""
    data.encode_images(pipe.vae, pictures(1))
    assert caplog.text == ""


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of pictures of each call that reached the autoencoder."""
    calls, encode = list[int](), data.encode_images

    def counted(vae: Any, images: Sequence[Image.Image]) -> torch.Tensor:
        calls.append(len(images))
        return encode(vae, images)

    monkeypatch.setattr(data, "encode_images", counted)
    return calls


def write(folder: Path, images: Sequence[Image.Image]) -> list[dict[str, str]]:
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    return [
        {"file": f"{number}.png", "caption": f"a dog number {number}", "source": f"{number}.jpg"}
        for number in range(len(images))
    ]


def test_a_picture_is_encoded_once(pipe: FluxPipeline, spec: BaseSpec, tmp_path: Path, encoded: list[int]) -> None:
    """A second reading, another name and another order touch no autoencoder and give the same tokens."""
    items, cache = write(tmp_path / "photos", pictures(3)), tmp_path / "cache"
    first = data.read_photos(tmp_path / "photos", items, pipe, spec=spec, cache=SealedStore(cache, KEY))
    assert sum(encoded) == 3
    (tmp_path / "photos" / "0.png").rename(tmp_path / "photos" / "zero.png")
    renamed = [*items[1:], {"file": "zero.png", "caption": "a dog number 0", "source": "zero.jpg"}]
    again = data.read_photos(tmp_path / "photos", renamed, pipe, spec=spec, cache=SealedStore(cache, KEY))
    assert sum(encoded) == 3
    assert torch.equal(again.tokens, first.tokens[[1, 2, 0]])
    assert torch.equal(again.captions.pooled, first.captions.pooled[[1, 2, 0]])
    assert len(list(cache.iterdir())) == 3


def test_another_picture_or_another_base_is_encoded_anew(
    pipe: FluxPipeline, spec: BaseSpec, tmp_path: Path, encoded: list[int]
) -> None:
    """The key is the picture's content and the base's hash: one changed pixel, or one changed file of the base."""
    images = pictures(2)
    items, cache = write(tmp_path / "photos", images), tmp_path / "cache"
    first = data.read_photos(tmp_path / "photos", items, pipe, spec=spec, cache=SealedStore(cache, KEY))
    images[1].paste((255, 0, 0), (0, 0, 64, 64))
    write(tmp_path / "photos", images)
    changed = data.read_photos(tmp_path / "photos", items, pipe, spec=spec, cache=SealedStore(cache, KEY))
    assert encoded == [1, 1, 1]
    assert torch.equal(changed.tokens[0], first.tokens[0])
    assert not torch.equal(changed.tokens[1], first.tokens[1])
    other = replace(spec, manifest={**spec.manifest, "vae/config.json": "0" * 64})
    data.read_photos(tmp_path / "photos", items, pipe, spec=other, cache=SealedStore(cache, KEY))
    assert encoded == [1] * 5


def test_photos_keep_caption_picture_and_latents_together(pipe: FluxPipeline, spec: BaseSpec, tmp_path: Path) -> None:
    """Row i of tokens, captions and images belongs to item i: checked one by one against single readings."""
    items = write(tmp_path / "photos", pictures(3))
    photos = data.read_photos(tmp_path / "photos", items, pipe, spec=spec, cache=SealedStore(tmp_path / "cache", KEY))
    assert (len(photos), photos.tokens.shape, photos.tokens.dtype) == (3, (3, 64, 64), torch.float32)
    for i, item in enumerate(items):
        image = Image.open(tmp_path / "photos" / item["file"])
        assert photos.images[i].tobytes() == image.tobytes()
        torch.testing.assert_close(photos.tokens[i : i + 1], pack(data.encode_images(pipe.vae, [image])))
        alone = encode_prompts(pipe, [item["caption"]], spec=spec)
        torch.testing.assert_close(photos.captions.take([i]).sequence, alone.sequence, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sides", [(128, 96), (120, 120)], ids=["of two sizes", "not a multiple of 16"])
def test_pictures_that_make_no_tokens_are_refused(
    sides: tuple[int, int], pipe: FluxPipeline, spec: BaseSpec, tmp_path: Path
) -> None:
    """Squares of one size in steps of 16; the message names the picture, its size and the step to run."""
    items = write(tmp_path / "photos", [pictures(1, side_px=side)[0] for side in sides])
    with pytest.raises(InputError, match=r"\d\.png is (96 x 96|120 x 120): .*run augment again"):
        data.read_photos(tmp_path / "photos", items, pipe, spec=spec, cache=SealedStore(tmp_path / "cache", KEY))
    Image.new("RGB", (128, 64)).save(tmp_path / "photos" / "0.png")
    with pytest.raises(InputError, match=r"0\.png is 128 x 64"):
        data.read_photos(tmp_path / "photos", items[:1], pipe, spec=spec, cache=SealedStore(tmp_path / "cache", KEY))


# Prompts


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a photo of sks dog on the beach", "a photo of a dog on the beach"),
        ("a photo of a sks dog", "a photo of a dog"),
        ("My sks dog, close up", "a dog, close up"),
        ("sks in the snow", "a dog in the snow"),
        ("SKS DOG and a cat", "a dog and a cat"),
        ("a photo of masks on a dog", "a photo of masks on a dog"),
        ("", ""),
    ],
)
def test_a_caption_without_its_subject(caption: str, expected: str) -> None:
    """The class stands where the subject stood, once and with its article; other words stay."""
    assert data.class_prompt(caption, trigger="sks", class_noun="dog") == expected


@pytest.mark.parametrize("count", [1, 5, 12, 40])
def test_preserved_prompts_are_as_many_as_asked_and_never_the_subjects(count: int) -> None:
    """Some about other classes and people, the rest about the class, its captions first; the same every time."""
    how: dict[str, Any] = {"count": count, "captions": ["a dog in bed", "a dog in bed", "a dog on a sofa"]}
    prompts = data.preservation_prompts("dog", ["dog", "cat", "owl"], **how)
    assert prompts == data.preservation_prompts("dog", ["dog", "cat", "owl"], **how)
    assert len(prompts) == count
    foreign = [prompt for prompt in prompts if " cat" in prompt or " owl" in prompt]
    assert all(
        f" {colour} {noun}" in prompt
        for prompt, colour, noun in zip(foreign, data.COLOURS * 5, ["cat", "owl"] * 20, strict=False)
    )
    people = [prompt for prompt in prompts if any(f" {person}" in prompt for person in data.PEOPLE)]
    assert (len(foreign), len(people)) == (round(0.3 * count), round(0.2 * count))
    assert len([prompt for prompt in prompts if "a dog" in prompt]) == count - len(foreign) - len(people)
    if count >= 12:
        assert prompts[:2] == ["a dog in bed", "a dog on a sofa"]
        assert len({prompt.split(" of ")[0] for prompt in prompts[2:]}) > 2


def test_a_base_without_known_classes_preserves_the_class_alone() -> None:
    """All prompts are the class's or about people where the spec names no others."""
    prompts = data.preservation_prompts("dog", [], count=10)
    assert ["a dog" in prompt for prompt in prompts] == [True] * 8 + [False] * 2


# Preservation


def by_prompt(targets: data.PreservationTargets, owner: int) -> list[int]:
    """Rows of one prompt, from noise to picture."""
    rows = (targets.owners == owner).nonzero().flatten().tolist()
    return sorted(rows, key=lambda row: -targets.sigmas[row].item())


def test_preserved_points_lie_on_the_way_the_stock_pipeline_goes(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """Latents after each step of `FluxPipeline.__call__`, and the velocity between them: (x' - x) / (σ' - σ)."""
    embeds = encode_prompts(pipe, PROMPTS, spec=spec)
    targets = data.preservation_targets_along_sampling(
        pipe.transformer, embeds, spec=spec, seed=3, side_px=128, batch_size=2
    )
    noise = noise_for([data.PRESERVATION_SEED + 3 * 10_007 + i for i in range(3)], spec=spec)
    states = [pipe._pack_latents(noise, 3, 16, 16, 16)]

    def note(_pipe: FluxPipeline, _step: int, _t: torch.Tensor, given: dict[str, Any]) -> dict[str, Any]:
        states.append(given["latents"])
        return {}

    pipe(
        PROMPTS,
        height=128,
        width=128,
        num_inference_steps=4,
        guidance_scale=0.0,
        max_sequence_length=24,
        latents=states[0],
        output_type="latent",
        callback_on_step_end=note,
    )
    assert (len(targets), len(states)) == (12, 5)
    for owner in range(3):
        rows = by_prompt(targets, owner)
        assert targets.sigmas[rows].tolist() == [1.0, 0.75, 0.5, 0.25]
        for row, (now, after) in zip(rows, pairwise(states), strict=True):
            torch.testing.assert_close(targets.tokens[row], now[owner], atol=1e-4, rtol=0)
            torch.testing.assert_close(targets.velocity[row], (after - now)[owner] / -0.25, atol=1e-3, rtol=0)


def test_the_teacher_is_the_base_with_the_adapter_off(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """An adapter with an effect changes nothing of what is preserved, and is on again afterwards."""
    embeds = encode_prompts(pipe, PROMPTS, spec=spec)
    baseline = data.preservation_targets_along_sampling(pipe.transformer, embeds, spec=spec, seed=0, side_px=128)
    parameters = attach(pipe.transformer, spec=spec, rank=4, alpha=4, seed=0)
    randomise(pipe.transformer)
    targets = data.preservation_targets_along_sampling(pipe.transformer, embeds, spec=spec, seed=0, side_px=128)
    torch.testing.assert_close(targets.velocity, baseline.velocity, atol=1e-6, rtol=0)
    torch.testing.assert_close(targets.tokens, baseline.tokens, atol=1e-6, rtol=0)
    assert all(p.requires_grad for p in parameters)


def test_with_a_training_adapter_it_teaches_and_the_base_walks(
    pipe: FluxPipeline, spec: BaseSpec, tmp_path: Path
) -> None:
    """Points are where serving comes by (the plain base); what is taught there is the base with the adapter on."""
    other = load_pipeline(spec)
    attach(other.transformer, spec=spec, rank=4, alpha=4, seed=0)
    randomise(other.transformer)
    file = save_adapter(other.transformer, tmp_path / "training.safetensors")
    embeds = encode_prompts(pipe, PROMPTS, spec=spec)
    baseline = data.preservation_targets_along_sampling(pipe.transformer, embeds, spec=spec, seed=0, side_px=128)
    with_adapter = replace(spec, training_adapter=file)
    attach(pipe.transformer, spec=with_adapter, rank=4, alpha=4, seed=0)
    targets = data.preservation_targets_along_sampling(pipe.transformer, embeds, spec=with_adapter, seed=0, side_px=128)
    torch.testing.assert_close(targets.tokens, baseline.tokens, atol=1e-6, rtol=0)
    first = targets.sigmas == 1
    with torch.no_grad():
        taught = other.transformer(
            hidden_states=baseline.tokens[first],
            timestep=torch.ones(3),
            guidance=None,
            pooled_projections=embeds.pooled,
            encoder_hidden_states=embeds.sequence,
            txt_ids=torch.zeros(24, 3),
            img_ids=pipe._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32),
            return_dict=False,
        )[0]
    torch.testing.assert_close(targets.velocity[first], taught, atol=1e-5, rtol=0)
    assert (targets.velocity - baseline.velocity).abs().max() > 0.01


def test_photos_can_be_preserved_under_class_prompts(pipe: FluxPipeline, spec: BaseSpec, dataset: Path) -> None:
    """Noised photos, each under its own prompt: the points lie between photo and noise, the answers are the plain base's."""
    photos = train_photos(dataset, pipe, spec)
    prompts = encode_prompts(pipe, ["a dog on the beach", "a dog in the snow", "a dog", "a dog in space"], spec=spec)
    attach(pipe.transformer, spec=spec, rank=4, alpha=4, seed=0)
    randomise(pipe.transformer)
    targets = data.preservation_targets_on_photos(
        pipe.transformer, photos, prompts, spec=spec, seed=0, count=6, serving_share=0.0
    )
    assert targets.owners.tolist() == [0, 1, 2, 3, 0, 1]
    level = targets.sigmas[:, None, None]
    noise = (targets.tokens - (1 - level) * photos.tokens[targets.owners]) / level
    assert noise.mean().abs() < 0.05
    assert noise.std() == pytest.approx(1, abs=0.05)
    with torch.no_grad():
        answer = load_pipeline(spec).transformer(
            hidden_states=targets.tokens,
            timestep=targets.sigmas,
            guidance=None,
            pooled_projections=prompts.pooled[targets.owners],
            encoder_hidden_states=prompts.sequence[targets.owners],
            txt_ids=torch.zeros(24, 3),
            img_ids=pipe._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32),
            return_dict=False,
        )[0]
    torch.testing.assert_close(targets.velocity, answer, atol=1e-5, rtol=0)


def test_preserved_points_keep_their_prompts_beside_others(pipe: FluxPipeline, spec: BaseSpec, dataset: Path) -> None:
    """Owners of the second part point past the prompts of the first; serving levels are among the noise levels."""
    photos = train_photos(dataset, pipe, spec)
    own = encode_prompts(pipe, [f"a dog {place}" for place in ("here", "there", "on the beach", "in space")], spec=spec)
    attach(pipe.transformer, spec=spec, rank=4, alpha=4, seed=0)
    along = data.preservation_targets_along_sampling(
        pipe.transformer, encode_prompts(pipe, PROMPTS, spec=spec), spec=spec, seed=0, side_px=128
    )
    targets = data.preservation_targets_on_photos(
        pipe.transformer, photos, own, spec=spec, seed=0, count=6, serving_share=1.0
    )
    both = along.concat(targets)
    assert len(both) == len(along) + 6
    assert set(targets.sigmas.tolist()) <= {1.0, 0.75, 0.5, 0.25}
    for row in range(6):
        there = len(along) + row
        assert torch.equal(both.prompts.sequence[both.owners[there]], own.sequence[targets.owners[row]])
        assert torch.equal(both.prompts.pooled[both.owners[there]], own.pooled[targets.owners[row]])
        assert torch.equal(both.tokens[there], targets.tokens[row])
    assert torch.equal(both.velocity[: len(along)], along.velocity)


# Batches


@pytest.fixture
def batches(pipe: FluxPipeline, spec: BaseSpec, base: Path, dataset: Path, tmp_path: Path) -> TrainingBatches:
    return prepare(pipe, spec, dataset, small(base), tmp_path).batches


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def with_params(batches: TrainingBatches, params: FinetuneParams, **how: Any) -> TrainingBatches:
    return TrainingBatches(batches.photos, batches.targets, spec=batches.spec, params=params, **how)


def test_a_batch_depends_on_seed_and_step_alone(batches: TrainingBatches) -> None:
    """Not on what was drawn before, on the global generator, on where the loop began or on other parameters."""
    seventh = batches.batch(7)
    torch.manual_seed(99)
    batches.batch(3)
    fresh = with_params(batches, batches.params.replace(lr=0.05, steps=100, ema=0.0))
    fresh.first = 7
    assert same(fresh.batch(7), seventh)
    assert same(next(iter(fresh)), seventh)
    assert not torch.equal(batches.batch(8).tokens, seventh.tokens)
    assert not torch.equal(with_params(batches, batches.params.replace(seed=1)).batch(7).tokens, seventh.tokens)


def test_a_batch_holds_noised_photos_and_the_way_to_them(batches: TrainingBatches) -> None:
    """x - σ v is a photo of the set and x + (1 - σ) v is noise; the caption goes with the photo."""
    for step in range(4):
        batch = batches.batch(step)
        photos = batch.photo_weights > 0
        level = batch.sigmas[photos, None, None]
        clean = batch.tokens[photos] - level * batch.targets[photos]
        distance = (clean[:, None] - batches.photos.tokens[None]).abs().amax((2, 3))
        rows = distance.argmin(1)
        assert distance.min(1).values.max() < 1e-4
        assert torch.equal(batch.sequence[photos], batches.photos.captions.sequence[rows])
        assert torch.equal(batch.pooled[photos], batches.photos.captions.pooled[rows])
        noise = batch.tokens[photos] + (1 - level) * batch.targets[photos]
        assert noise.std() == pytest.approx(1, abs=0.05)


def test_a_batch_ends_with_preserved_points(batches: TrainingBatches) -> None:
    """Rows from the preserved set, each with the prompt it was made with; weights of both parts add up to one."""
    targets = batches.targets
    assert targets is not None
    batch = batches.batch(1)
    assert batch.photo_weights.tolist() == [0.5, 0.5, 0, 0]
    assert batch.preservation_weights.tolist() == [0, 0, 0.5, 0.5]
    for i in (2, 3):
        row = int((targets.tokens - batch.tokens[i]).abs().amax((1, 2)).argmin())
        assert torch.equal(targets.velocity[row], batch.targets[i])
        assert targets.sigmas[row] == batch.sigmas[i]
        assert torch.equal(targets.prompts.pooled[targets.owners[row]], batch.pooled[i])
    bare = with_params(batches, batches.params.replace(preservation=0.0)).batch(1)
    assert len(bare.tokens) == 2
    assert torch.equal(bare.tokens, batch.tokens[:2])


def test_parts_of_a_batch_make_the_batch(batches: TrainingBatches) -> None:
    """In two parts each step yields two interleaved halves with photos and preserved points in both."""
    halves = with_params(batches, batches.params, micro_batches=2)
    parts = list(halves)
    assert len(parts) == 2 * batches.params.steps
    for step in range(batches.params.steps):
        whole, (first, second) = batches.batch(step), parts[2 * step : 2 * step + 2]
        assert torch.equal(torch.stack([first.tokens, second.tokens], 1).flatten(0, 1), whole.tokens)
        assert first.photo_weights.sum() + second.photo_weights.sum() == 1
        assert first.preservation_weights.sum() == second.preservation_weights.sum() == 0.5


@pytest.mark.parametrize(("items", "count"), [(4, 4), (5, 2), (3, 7), (1, 3)])
def test_items_come_in_turn(items: int, count: int) -> None:
    """Over any number of steps no item is ahead of another by more than one, and rounds differ in order."""
    seen = [i for step in range(30) for i in in_turn(items, train_step=step, count=count, seed=0)]
    for round_ in range(len(seen) // items):
        assert sorted(seen[round_ * items : (round_ + 1) * items]) == list(range(items))
    orders = {tuple(seen[r * items : (r + 1) * items]) for r in range(len(seen) // items)}
    assert items < 3 or len(orders) > 1
