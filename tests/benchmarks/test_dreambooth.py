"""The rival is the published recipe: its sampling, loss, gradient and steps, derived anew here from what diffusers ships."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import dreambooth
from benchmarks.dreambooth import DreamBooth, TrainingData
from photoflux.flux.data import encode_images
from photoflux.flux.loading import load_pipeline
from photoflux.flux.lora import subject_parameters
from photoflux.flux.sampling import generate
from photoflux.flux.spec import BaseSpec, load_spec
from photoflux.flux.step import TokenGrid, pack, unpack
from photoflux.flux.text import encode_prompts
from photoflux.judges.encoders import Judges
from photoflux.manifest import read_manifest
from photoflux.manifest import unpack as unpacked
from photoflux.params import EvaluateParams
from photoflux.steps import evaluate
from tests.judges.tiny import make_base, make_dataset

SUBJECT = {"trigger": "sks", "class_noun": "dog"}
SIDE = 16
"""Of the pocket base's latents."""


@pytest.fixture(autouse=True)
def on_the_cpu(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOFLUX_DEVICE", "cpu")


@pytest.fixture(scope="module")
def pocket() -> BaseSpec:
    return load_spec("pocket")


@pytest.fixture
def pipe(pocket: BaseSpec) -> FluxPipeline:
    return load_pipeline(pocket)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseSpec:
    return load_spec(str(make_base(tmp_path_factory.mktemp("base"))))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset") / "dataset.tar", class_noun="dog")


def material(pipe: FluxPipeline, spec: BaseSpec) -> TrainingData:
    """Five photos, each under its caption, and seven class pictures under theirs; all are noise."""
    generator = torch.Generator().manual_seed(3)
    photos, pictures = (pack(torch.randn(count, 16, SIDE, SIDE, generator=generator)) for count in (5, 7))
    captions = [
        f"a photo of sks dog {place}" for place in ("", "in space", "in the snow", "on the beach", "in a studio")
    ]
    prompts = [*captions, dreambooth.class_prompt_of(SUBJECT)]
    return TrainingData(photos, pictures, encode_prompts(pipe, prompts, spec=spec))


def published_sigmas(count: int, spec: BaseSpec, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise levels and what the transformer is told of them, as the script has them with its default weighting scheme."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(spec.folder, subfolder="scheduler")
    u = compute_density_for_timestep_sampling(
        weighting_scheme="none", batch_size=count, logit_mean=0.0, logit_std=1.0, mode_scale=1.29, generator=generator
    )
    timesteps = scheduler.timesteps[(u * scheduler.config.num_train_timesteps).long()]
    places = [(scheduler.timesteps == timestep).nonzero().item() for timestep in timesteps]
    return scheduler.sigmas[places], timesteps / 1000


def published_loss(transformer: Any, spec: BaseSpec, stuff: TrainingData, *, step: int, how: DreamBooth) -> Tensor:
    """Instance and prior loss of one batch on latents [2B, 16, h, w], with diffusers' packing, ids and weighting."""
    batch = stuff.batch(step, size=how.batch_size, seed=how.seed)
    z, noise = (unpack(tokens, height=SIDE, width=SIDE) for tokens in (batch.clean, batch.noise))
    generator = torch.Generator().manual_seed(how.seed * 1_000_003 + step)
    assert torch.equal(torch.randn(batch.noise.shape, generator=generator), batch.noise)
    levels, told = published_sigmas(len(z), spec, generator)
    sigmas = levels.view(-1, 1, 1, 1)
    packed = FluxPipeline._pack_latents((1.0 - sigmas) * z + sigmas * noise, len(z), 16, SIDE, SIDE)
    answer = transformer(
        hidden_states=packed,
        timestep=told,
        guidance=None,
        pooled_projections=batch.prompts.pooled,
        encoder_hidden_states=batch.prompts.sequence,
        txt_ids=torch.zeros(spec.text_length, 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(len(z), SIDE // 2, SIDE // 2, "cpu", torch.float32),
        return_dict=False,
    )[0]
    answer = FluxPipeline._unpack_latents(answer, height=8 * SIDE, width=8 * SIDE, vae_scale_factor=8)
    weighting = compute_loss_weighting_for_sd3(weighting_scheme="none", sigmas=sigmas)
    errors = (weighting * (answer - (noise - z)) ** 2).reshape(len(z), -1).mean(1)
    instance, prior = errors.chunk(2)
    return instance.mean() + 1.0 * prior.mean()


def gradients(transformer: Any, loss: Tensor) -> dict[str, Tensor]:
    transformer.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in subject_parameters(transformer).items() if p.grad is not None}


def test_noise_levels_are_drawn_as_the_script_draws_them(pocket: BaseSpec) -> None:
    published, told = published_sigmas(4000, pocket, torch.Generator().manual_seed(1))
    drawn = dreambooth.sample_sigmas(4000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, published) and torch.equal(drawn, told)
    assert drawn.min() > 0 and drawn.max() == 1 and abs(drawn.mean().item() - 0.5) < 0.02


@pytest.mark.parametrize("step", [0, 5])
def test_loss_and_gradient_are_the_scripts(pipe: FluxPipeline, pocket: BaseSpec, step: int) -> None:
    how, stuff = DreamBooth(lr=1e-3, steps=1, started=True, batch_size=3, seed=4), material(pipe, pocket)
    dreambooth.add_adapter(pipe.transformer, spec=pocket, how=how)
    grid = TokenGrid.of(torch.empty(1, 16, SIDE, SIDE), text_length=pocket.text_length)
    ours = dreambooth.loss_of(pipe.transformer, stuff.batch(step, size=3, seed=4), grid)
    theirs = published_loss(pipe.transformer, pocket, stuff, step=step, how=how)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    mine, published = gradients(pipe.transformer, ours), gradients(pipe.transformer, theirs)
    assert len(mine) == len(subject_parameters(pipe.transformer)) and any(g.abs().max() > 1e-4 for g in mine.values())
    for name, gradient in published.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("started", [False, True])
def test_a_training_goes_where_the_scripts_goes(pocket: BaseSpec, started: bool) -> None:
    """Four steps with torch's AdamW at the script's defaults, its clipping over all parameters, its constant schedule."""
    how = DreamBooth(lr=2e-3, steps=4, started=started, batch_size=2, seed=1)
    one, other = load_pipeline(pocket), load_pipeline(pocket)
    for each in (one, other):
        dreambooth.add_adapter(each.transformer, spec=pocket, how=how)
    begun = {name: p.detach().clone() for name, p in subject_parameters(one.transformer).items()}
    stuff = material(one, pocket)
    grid = TokenGrid.of(torch.empty(1, 16, SIDE, SIDE), text_length=pocket.text_length)
    losses = [loss for _, loss in dreambooth.train(one.transformer, stuff, grid, how)]
    published = []
    parameters = [p for p in other.transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": how.lr}], betas=(0.9, 0.999), weight_decay=1e-4, eps=1e-8
    )
    schedule = get_scheduler("constant", optimizer=optimizer, num_warmup_steps=500, num_training_steps=4)
    for step in range(how.steps):
        loss = published_loss(other.transformer, pocket, stuff, step=step, how=how)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.transformer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        published.append(loss.item())
    assert losses == pytest.approx(published, rel=1e-4)
    theirs = subject_parameters(other.transformer)
    for name, parameter in subject_parameters(one.transformer).items():
        way = (theirs[name] - begun[name]).norm().item()
        assert way > 0
        assert (parameter - theirs[name]).norm().item() < 5e-4 * way, (
            f"{name}: other betas or decay part by .001 and more"
        )


def test_a_fresh_adapter_begins_as_the_scripts(pipe: FluxPipeline, pocket: BaseSpec) -> None:
    how = DreamBooth(lr=1e-3, steps=1)
    dreambooth.add_adapter(pipe.transformer, spec=pocket, how=how)
    config = LoraConfig(
        r=how.rank, lora_alpha=16, target_modules=list(pocket.lora_targets), init_lora_weights="gaussian"
    )
    published = load_pipeline(pocket).transformer
    published.add_adapter(config, adapter_name="subject")
    assert pipe.transformer.peft_config["subject"].lora_alpha == how.rank
    for name, parameter in subject_parameters(pipe.transformer).items():
        theirs = subject_parameters(published)[name]
        assert parameter.shape == theirs.shape
        if ".lora_B." in name:
            assert not parameter.any() and not theirs.any()
        else:
            for one in (parameter, theirs):
                assert one.std().item() == pytest.approx(1 / how.rank, rel=0.1)


def test_the_training_adapter_acts_frozen_while_it_trains(pipe: FluxPipeline, pocket: BaseSpec) -> None:
    dreambooth.add_adapter(pipe.transformer, spec=pocket, how=DreamBooth(lr=1e-3, steps=1))
    assert pocket.training_adapter is not None
    assert (
        set(pipe.transformer.active_adapters()) == set(pipe.transformer.peft_config) == {"subject", "training_adapter"}
    )
    trained = {id(one) for one in subject_parameters(pipe.transformer).values()}
    assert {id(one) for one in pipe.transformer.parameters() if one.requires_grad} == trained
    frozen = load_file(pocket.training_adapter)
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="training_adapter")
    for name, value in layers.items():
        torch.testing.assert_close(value.float(), frozen[f"transformer.{name}"].float())


def test_a_started_one_begins_at_the_starting_adapter(pipe: FluxPipeline, pocket: BaseSpec) -> None:
    dreambooth.add_adapter(pipe.transformer, spec=pocket, how=DreamBooth(lr=1e-3, steps=1, started=True))
    assert pocket.start_adapter is not None
    start = load_file(pocket.start_adapter)
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="subject")
    assert {f"transformer.{name}" for name in layers} == set(start)
    for name, value in layers.items():
        torch.testing.assert_close(value, start[f"transformer.{name}"].float())


def test_a_batch_is_half_photos_and_half_class_pictures_which_come_once_in_an_epoch(
    pipe: FluxPipeline, pocket: BaseSpec
) -> None:
    stuff = material(pipe, pocket)
    stuff = replace(
        stuff,
        photos=stuff.photos[:3],
        pictures=torch.cat([stuff.pictures, stuff.pictures + 9])[:12],
        prompts=stuff.prompts.take([0, 1, 2, 5]),
    )
    batches = [stuff.batch(step, size=4, seed=2) for step in range(3)]
    for batch in batches:
        for clean, prompt in zip(batch.clean[:4], batch.prompts.pooled[:4], strict=True):
            (photo,) = (number for number, one in enumerate(stuff.photos) if torch.equal(one, clean))
            assert torch.equal(prompt, stuff.prompts.pooled[photo])
        assert torch.equal(batch.prompts.pooled[4:], stuff.prompts.pooled[[3] * 4])
    shown = {
        part: torch.cat([batch.clean[rows] for batch in batches])
        for part, rows in (("photos", slice(0, 4)), ("pictures", slice(4, 8)))
    }
    for part, times in (("photos", 4), ("pictures", 1)):
        each = getattr(stuff, part)
        counts = [(shown[part] == one).flatten(1).all(1).sum().item() for one in each]
        assert counts == [times] * len(each)


def test_class_pictures_are_what_the_base_draws_of_the_class(
    tiny: BaseSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dreambooth.CLASS_PICTURES == 48
    monkeypatch.setattr(dreambooth, "CLASS_PICTURES", 3)
    pipe = load_pipeline(tiny)
    found = dreambooth.class_pictures(pipe, SUBJECT, spec=tiny, cache=tmp_path)
    seeds = range(dreambooth.CLASS_SEED, dreambooth.CLASS_SEED + 3)
    drawn = generate(pipe, ["a photo of a dog"] * 3, seeds, spec=tiny)
    torch.testing.assert_close(found, pack(encode_images(pipe.vae, drawn)))
    pipe.transformer = None
    assert torch.equal(dreambooth.class_pictures(pipe, SUBJECT, spec=tiny, cache=tmp_path), found)


@pytest.fixture
def run(tiny: BaseSpec, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """The whole recipe on the tiny base, which has no starting adapter, with few class pictures."""
    monkeypatch.setattr(dreambooth, "CLASS_PICTURES", 3)

    def to_the_end(name: str, *, at: tuple[int, ...], **more: Any) -> tuple[dreambooth.TrainingTimes, dict[int, Path]]:
        how = DreamBooth(lr=5e-3, steps=max(at), rank=2, alpha=2.0, batch_size=2)
        adapters = {count: tmp_path / name / f"{count}.tar" for count in at}
        told = dreambooth.run(dataset, adapters=adapters, spec=tiny, how=how, cache=tmp_path / name, **more)
        return told, adapters

    yield to_the_end


def weights_of(adapter: Path, into: Path) -> dict[str, Tensor]:
    unpacked(adapter, into)
    return load_file(into / dreambooth.WEIGHTS)


def test_what_a_training_has_on_its_way_is_what_a_shorter_one_ends_with(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    """So that one training is judged at several numbers of steps."""
    _, long = run("long", at=(2, 4))
    _, brief = run("brief", at=(2,))
    way, end = weights_of(long[2], tmp_path / "a"), weights_of(brief[2], tmp_path / "b")
    assert all(torch.equal(way[name], end[name]) for name in end)
    later = weights_of(long[4], tmp_path / "c")
    assert any(not torch.equal(way[name], later[name]) for name in later)


def test_its_adapter_is_evaluated_as_any_other(
    run: Callable[..., Any], tiny: BaseSpec, dataset: Path, tmp_path: Path
) -> None:
    judges = Judges.load(Path(str(tiny.judges)), device="cpu")
    told, adapters = run("one", at=(2,), judges=judges, judged={1, 2})
    assert told.seconds == pytest.approx(told.prepared_s + told.trained_s) and told.trained_s > 0
    assert [one["step"] for one in told.curve] == [1, 2]
    lineage = read_manifest(adapters[2])
    assert lineage["subject"]["trigger"] == "sks" and lineage["base"]["hash"] == tiny.hash and lineage["step"] == 2
    base = str(Path(str(tiny.folder)).with_suffix(".yaml"))
    how = EvaluateParams(base=base, prompts="pocket", profile="smoke", bootstrap=200, half_width_max=1.0)
    evaluate.run(dataset, adapters[2], evaluation=tmp_path / "e.json", report=tmp_path / "e.html", params=how)
    assert (tmp_path / "e.json").is_file()
