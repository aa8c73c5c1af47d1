from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from photoflux.errors import InputError
from photoflux.manifest import digest
from photoflux.pocket import train_judges, train_vae, world
from photoflux.pocket.data import Cache, classes, label_ids, render_batch, render_views, stream
from photoflux.pocket.models import PocketConfig, build_vae
from photoflux.pocket.pretrain import (
    CAPACITY,
    SHARES,
    Plan,
    _parser,
    _plan,
    _replacing_folder,
    cache_of,
    pretrain,
)
from photoflux.pocket.tokenizers import TRIGGERS, t5_tokenizer
from photoflux.pocket.train_flow import (
    LatentSet,
    Samples,
    guided,
    hard_captions,
    mean_velocity,
    sample_batch,
    sample_sigmas,
    visited_sigmas,
)
from photoflux.pocket.training import Budget, Muon, Recipe, Run, load_average, orthogonal
from tests.pocket.untrained import init_base

SMOKE = replace(Plan.smoke(), workers=0)


def line_run(folder, *, steps, seed=0, **settings):
    """Fit y = 3x with a single weight: the smallest thing a Run can train."""
    torch.manual_seed(seed)
    recipe = Recipe(lr=0.1, warmup_steps=1, ema=0.9)
    return Run("line", nn.Linear(1, 1, bias=False), folder / "line.pt", Budget(steps=steps), recipe, **settings)


def train_line(run, *, stop_before=None):
    for step in run:
        if step == stop_before:
            break
        x = torch.randn(8, 1, generator=run.generator(step))
        run.update((run.module(x) - 3 * x).square().mean(), images=8)
    return run


# --- data


def test_draws_depend_on_seed_and_index_only():
    whole = render_batch(0, seed=3, count=4, size_px=32)
    half = render_batch(1, seed=3, count=2, size_px=32)
    assert np.array_equal(whole.pixels[2:], half.pixels)
    assert whole.captions[2:] == half.captions
    assert np.array_equal(whole.labels[2:], half.labels)
    assert not np.array_equal(whole.pixels, render_batch(0, seed=4, count=4, size_px=32).pixels)


def test_labels_are_class_positions_and_minus_one_where_none():
    ids = label_ids({"kind": "person", "gender": classes()["gender"][1]})
    named = dict(zip(classes(), ids, strict=True))
    assert named["kind"] == len(classes()["kind"]) - 1
    assert named["gender"] == 1
    assert named["colour"] == -1


def small_cache(folder, *, count=8, size_px=32, text_length=5):
    """Pictures with latents that are their row everywhere."""
    side = size_px // 8
    cache = Cache(folder, capacity=count, latent_shape=(16, side, side), text_length=text_length, size_px=size_px)
    ids = np.zeros((count, 2, text_length))
    cache.put(0, render_batch(0, seed=0, count=count, size_px=size_px), clip_ids=ids, t5_ids=ids)
    cache.put_latents(0, np.arange(count)[:, None, None, None] * np.ones((1, 16, side, side)))
    return cache


def test_crops_are_parts_of_the_pictures(tmp_path):
    cache = small_cache(tmp_path, count=2, size_px=64)
    pictures = train_vae.CachedImages(cache, torch.device("cpu"), count=2)
    how = {"generator": torch.Generator().manual_seed(1)}
    crops = pictures.sample(4, side_px=32, **how).numpy()
    assert crops.shape == (4, 32, 32, 3)
    windows = [np.lib.stride_tricks.sliding_window_view(one, (32, 32, 3))[:, :, 0] for one in cache.pixels[:2]]
    for crop in crops:
        assert any((places == crop).all(axis=(2, 3, 4)).any() for places in windows)
    whole = pictures.sample(8, side_px=64, **how).numpy()
    assert all(any(np.array_equal(one, picture) for picture in cache.pixels[:2]) for one in whole)


def test_the_vae_sees_what_is_drawn_while_it_trains(tmp_path):
    cache = Cache(tmp_path, capacity=12, latent_shape=(16, 4, 4), text_length=5, size_px=32)
    pictures = train_vae.CachedImages(cache, torch.device("cpu"), count=8)
    ids, seen = np.zeros((4, 2, 5)), []
    for index in range(3):
        cache.put(4 * index, render_batch(index, seed=0, count=4, size_px=32), clip_ids=ids, t5_ids=ids)
        seen.append(pictures.refresh())
    assert seen == [4, 8, 8]
    drawn = pictures.sample(200, side_px=32, generator=torch.Generator().manual_seed(0)).numpy()
    found = {next(row for row in range(12) if np.array_equal(one, cache.pixels[row])) for one in drawn}
    assert found == set(range(8))


def test_views_repeat_each_subject():
    pixels, numbers = render_views(0, seed=0, subjects=3, views=2, size_px=32)
    assert pixels.shape == (6, 32, 32, 3)
    assert numbers.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_stream_keeps_order_with_and_without_workers(workers):
    task = partial(render_batch, seed=0, count=1, size_px=32)
    drawn = stream(task, start=3, workers=workers, ahead=2)
    for index in (3, 4, 5):
        assert np.array_equal(next(drawn).pixels, task(index).pixels)
    drawn.close()


def test_workers_of_a_killed_training_leave_too():
    script = (
        "import multiprocessing, os, signal, time\n"
        "from photoflux.pocket.data import render_batch, stream\n"
        "from functools import partial\n"
        "drawn = stream(partial(render_batch, seed=0, count=1, size_px=32), workers=1)\n"
        "next(drawn)\n"
        "print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    workers = [int(pid) for pid in killed.stdout.split()]
    assert workers
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_share_of_scenes_is_called_by_name():
    """Then the second caption has a name, and the scene shows who it means; other captions have none."""
    batch = render_batch(0, seed=0, count=150, size_px=16)
    named = 0
    for (plain, second), labels in zip(batch.captions, batch.labels, strict=True):
        assert not set(plain.split()) & set(TRIGGERS)
        if names := set(second.split()) & set(TRIGGERS):
            named += 1
            (name,) = names
            noun = second.split()[second.split().index(name) + 1]
            who = world.named(name, noun)
            told = label_ids(world.labels(world.sample_scene(np.random.default_rng(0), subject=who)))
            for attribute in ("kind", "colour", "accent", "pattern", "gender", "tone", "hair"):
                place = list(classes()).index(attribute)
                assert labels[place] == told[place]
    assert named / 150 == pytest.approx(0.2, abs=0.1)


def test_cache_counts_only_what_is_written(tmp_path):
    def opened():
        return Cache(tmp_path, capacity=8, latent_shape=(16, 4, 4), text_length=5, size_px=32)

    cache, batch = opened(), render_batch(0, seed=0, count=4, size_px=32)
    ids = np.arange(40).reshape(4, 2, 5)
    assert cache.filled == cache.drawn == 0
    for start in (0, 4):
        cache.put(start, batch, clip_ids=ids, t5_ids=ids + 1)
    cache.put_latents(0, np.ones((4, 16, 4, 4)))
    again = opened()
    assert (again.drawn, again.filled) == (8, 4)
    assert np.array_equal(again.pixels, np.concatenate([batch.pixels, batch.pixels]))
    assert np.array_equal(again.t5_ids[4:], ids + 1)
    assert np.array_equal(again.coverage[4:], batch.coverage)


def test_labels_of_decoded_pictures_are_those_of_their_scenes(tmp_path):
    """The decoded ones are the last of the cache; here every picture is as bright as its row says, drawn or decoded."""
    cache = small_cache(tmp_path)
    cache.pixels[:8] = cache.labels[:8] = cache.clip_ids[:8] = 0
    cache.labels[:8, 0] = cache.clip_ids[:8, 0, 0] = np.arange(8)
    cache.pixels[:8] += 30 * np.arange(8, dtype=np.uint8)[:, None, None, None]
    pool = train_judges.Pool(cache, cache.pixels[5:8], torch.device("cpu"))
    images, labels, ids = pool.sample(64, torch.Generator().manual_seed(0))
    rows = ((images.mean(dim=(1, 2, 3)) + 1) * 127.5 / 30).round().long().clamp(0, 7)
    assert (rows - labels[:, 0]).abs().max() <= 1  # brightness is varied a little
    assert torch.equal(labels[:, 0], ids[:, 0])
    assert set(labels[:32, 0].tolist()) == set(range(8))
    assert set(labels[32:, 0].tolist()) == {5, 6, 7}


# --- the loop


def test_resumed_run_is_bit_equal(tmp_path):
    straight = train_line(line_run(tmp_path / "a", steps=20))
    train_line(line_run(tmp_path / "b", steps=20), stop_before=9).save()
    resumed = train_line(line_run(tmp_path / "b", steps=20, seed=99))
    assert torch.equal(resumed.module.weight, straight.module.weight)
    assert torch.equal(resumed.ema.averages[0], straight.ema.averages[0])


def test_a_finished_run_does_nothing_more(tmp_path):
    train_line(line_run(tmp_path, steps=5))
    assert list(line_run(tmp_path, steps=5)) == []
    module = nn.Linear(1, 1, bias=False)
    assert load_average(tmp_path / "line.pt", module)
    assert not load_average(tmp_path / "missing.pt", module)


def test_a_loss_that_is_not_finite_changes_no_weight(tmp_path):
    run = line_run(tmp_path, steps=2)
    before = run.module.weight.clone()
    run.update(run.module(torch.ones(1, 1)).sum() * math.nan, images=1)
    assert torch.equal(before, run.module.weight)


def test_budget_ends_at_the_nearer_limit():
    budget = Budget(seconds=100, steps=10)
    assert budget.progress(spent_s=50, step=1) == 0.5
    assert budget.progress(spent_s=1, step=9) == 0.9
    assert budget.progress(spent_s=500, step=0) == 1.0
    assert Recipe(lr=1, warmup_steps=1).rate(progress=1.0, step=99) == pytest.approx(0)


def test_orthogonal_brings_singular_values_near_one():
    for shape in ((24, 60), (60, 24)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        singular = torch.linalg.svdvals(orthogonal(matrix))
        assert singular.min() > 0.6 and singular.max() < 1.3


def test_muon_moves_each_matrix_as_if_it_were_alone():
    """Matrices of one shape are made orthogonal together; a convolution counts as a matrix of its rows."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 18), (8, 2, 3, 3), (18, 8), (8, 18)]
    together = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    optimisers = [Muon(together, lr=0.1), *(Muon([p], lr=0.1) for p in alone)]
    for _ in range(3):
        for a, b in zip(together, alone, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


def test_muon_descends():
    torch.manual_seed(0)
    layer, target = nn.Linear(16, 16, bias=False), torch.randn(16, 16)
    optimiser = Muon([layer.weight], lr=0.1, weight_decay=0.0)
    losses = []
    for _ in range(100):
        optimiser.zero_grad()
        loss = (layer.weight - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# --- losses and measures


def test_sigmas_cover_both_ends():
    sigmas = sample_sigmas(20_000, torch.Generator().manual_seed(0))
    assert sigmas.min() > 0 and sigmas.max() < 1
    below = 0.8 * 0.3821 + 0.2 * 0.5  # Phi(-0.3) of the normal part
    assert (sigmas < 0.5).float().mean() == pytest.approx(below, abs=0.012)
    assert (sigmas > 0.95).float().mean() == pytest.approx(0.2 * 0.05 + 0.8 * 0.0041, abs=0.004)


def test_hard_captions_come_often(tmp_path):

    tokenizer = t5_tokenizer(list(world.vocabulary()), length=12)
    cache = Cache(tmp_path, capacity=64, latent_shape=(16, 2, 2), text_length=12, size_px=16)
    batch = render_batch(0, seed=0, count=64, size_px=16)
    ids = train_vae.tokenise(tokenizer, batch, length=12)
    cache.put(0, batch, clip_ids=ids, t5_ids=ids)
    cache.put_latents(0, np.arange(64)[:, None, None, None] * np.ones((1, 16, 2, 2)))
    often = hard_captions(cache, tokenizer)
    named = {
        (row, which)
        for row, pair in enumerate(batch.captions)
        for which in (0, 1)
        if {"details", *TRIGGERS} & set(pair[which].split())
    }
    assert {tuple(place) for place in often.tolist()} == named
    data = LatentSet.of(cache, torch.device("cpu"), often=often)
    drawn = sample_batch(data, count=50, generator=torch.Generator().manual_seed(0))
    hard = torch.tensor([tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("details", *TRIGGERS)])
    assert torch.isin(drawn.t5_ids[:25], hard).any(dim=1).all()
    rows = drawn.clean[:, 0, 0].long()
    assert all(drawn.t5_ids[i].tolist() in ids[row].tolist() for i, row in enumerate(rows.tolist()))


def test_distillation_teaches_the_mean_of_its_small_steps():
    """For v = sigma, guided or not: from .7 in two steps of .125, .7 and .575; from .1 to nothing, .1 and .05."""

    def flow(tokens, sigma, *_):
        return sigma[:, None, None].expand_as(tokens)

    ids = torch.zeros(2, 3, dtype=torch.long)
    tokens, sigma = torch.randn(2, 4, 64), torch.tensor([0.7, 0.1])
    mean = mean_velocity(flow, tokens, sigma, (ids, ids), (ids[:1], ids[:1]), scale=2.5, span=0.25, substeps=2)
    torch.testing.assert_close(mean, torch.tensor([0.6375, 0.075])[:, None, None].expand(2, 4, 64))


def test_guidance_moves_away_from_no_caption():
    ids, none = torch.ones(2, 3), torch.full((1, 3), 5.0)

    def flow(tokens, sigma, clip_ids, t5_ids):
        return tokens + clip_ids[:, :1, None] + 0 * t5_ids[:, :1, None]

    tokens = torch.randn(2, 4, 64)
    seen = guided(flow, tokens, torch.ones(2), (ids, ids), (none, none), 3.0)
    torch.testing.assert_close(seen, tokens + 5 + 3 * (1 - 5))


def test_distillation_mostly_sees_the_levels_of_serving():
    sigma = visited_sigmas(torch.full((8_000,), 0.33), torch.Generator().manual_seed(0), steps=4)
    levels, counts = sigma.unique(return_counts=True)
    assert levels.tolist() == pytest.approx([0.25, 0.33, 0.5, 0.75, 1.0])
    assert (counts / 8_000).tolist() == pytest.approx([0.1875, 0.25, 0.1875, 0.1875, 0.1875], abs=0.02)


def test_subject_counts_three_times():
    flat = torch.zeros(1, 4, 64)
    samples = Samples(flat, flat, torch.zeros(1), flat, flat, coverage=torch.tensor([[0.0, 1.0, 0.5, 0.0]]))
    off = torch.tensor([2.0, 1.0, 1.0, 0.0])[None, :, None].expand_as(flat)
    # weights 1, 3, 2, 1 on squared errors 4, 1, 1, 0
    torch.testing.assert_close(samples.loss(off, flat), torch.tensor(9.0 / 7.0))


def test_kl_is_that_of_two_normals():
    mean, logvar = torch.tensor([[0.0, 1.5]]), torch.tensor([[0.0, -1.0]])
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (logvar / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    ).mean()
    torch.testing.assert_close(train_vae.kl_loss(mean, logvar), expected)


def test_reconstruction_loss_is_zero_only_for_the_same():
    image = torch.rand(1, 3, 16, 16)
    assert train_vae.reconstruction_loss(image, image) == 0
    assert train_vae.reconstruction_loss(image + 0.1, image).item() == pytest.approx(0.1 * 2, rel=1e-4)


def test_fitted_scale_gives_unit_latents():
    vae = build_vae(PocketConfig.tiny()).eval()
    train_vae.fit_scale(vae, seed=0, batches=2, count=8)
    latents = torch.cat([train_vae.encode(vae, render_batch(i, seed=0, count=8, size_px=128).pixels) for i in range(2)])
    assert latents.mean().item() == pytest.approx(0, abs=1e-3)
    assert latents.std().item() == pytest.approx(1, abs=1e-3)


def test_mean_average_precision_by_hand():
    perfect = np.eye(2)[[0, 0, 1, 1]]
    assert train_judges.mean_average_precision(perfect, np.array([0, 0, 1, 1])) == 1.0
    # own picture found second, third, third, second: (1/2 + 1/3 + 1/3 + 1/2) / 4
    angles = np.radians([0, 50, 10, 60])
    fan = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert train_judges.mean_average_precision(fan, np.array([0, 0, 1, 1])) == pytest.approx(5 / 12)


def test_balanced_accuracy_weighs_classes_not_pictures():
    assert train_judges.balanced_accuracy([[90, 10], [1, 1]]) == pytest.approx(0.7)
    assert train_judges.balanced_accuracy([[3, 1], [0, 0]]) == pytest.approx(0.75)


def test_supervised_contrastive_loss_prefers_the_right_grouping():
    vectors, subjects = torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])
    right = train_judges.supervised_contrastive_loss(vectors, subjects)
    wrong = train_judges.supervised_contrastive_loss(vectors, subjects[[0, 2, 1, 3]])
    assert right < 0.01 < wrong


def test_single_stages_can_be_given_their_time():
    plan = _plan(_parser().parse_args(["--minutes", "vae=0.5,flow=4", "--budget-min", "100", "--device", "cpu"]))
    assert [plan.budget(stage).seconds for stage in ("vae", "flow", "distil")] == [30, 240, 60 * 100 * SHARES["distil"]]
    for wrong in ("vae", "vae=", "pictures=2", "vae=2m"):
        with pytest.raises(SystemExit):
            _parser().parse_args(["--minutes", wrong])


def test_a_gpu_gets_larger_batches_and_more_scenes_unless_told_otherwise():
    cpu, gpu = (_plan(_parser().parse_args(["--device", device])) for device in ("cpu", "cuda"))
    assert cpu == Plan()
    assert (gpu.batch, gpu.vae_batch, gpu.pictures) > (cpu.batch, cpu.vae_batch, cpu.pictures)
    assert _plan(_parser().parse_args(["--device", "cuda", "--pictures", "640"])).pictures == 640


def test_what_cannot_be_trained_on_is_said_first(tmp_path):
    with pytest.raises(InputError, match=f"the cache has room for {CAPACITY}"):
        pretrain(tmp_path / "pocket", work=tmp_path / "work", plan=replace(SMOKE, pictures=CAPACITY + 1))
    with pytest.raises(InputError, match="begin with --stages pictures,vae"):
        pretrain(tmp_path / "pocket", work=tmp_path / "work", plan=SMOKE, stages=["vae"])


# --- the whole


@pytest.mark.slow
def test_all_stages_make_a_base_that_stock_diffusers_draws_with(tmp_path):
    from diffusers import FluxPipeline

    out = pretrain(tmp_path / "pocket", work=tmp_path / "work", plan=SMOKE)
    pipe = FluxPipeline.from_pretrained(out, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    spec = yaml.safe_load((tmp_path / "pocket.yaml").read_text())
    image = pipe(
        "a photo of a red dog",
        height=spec["resolution_px"],
        width=spec["resolution_px"],
        num_inference_steps=spec["steps"],
        guidance_scale=spec["guidance_scale"],
        max_sequence_length=spec["text_length"],
    ).images[0]
    assert image.size == (128, 128)
    assert {part.dtype for part in (pipe.vae, pipe.transformer, pipe.text_encoder, pipe.text_encoder_2)} == {
        torch.float32
    }
    assert cache_of(tmp_path / "work", SMOKE).filled == SMOKE.pictures
    assert all(digest(out / name) == value for name, value in spec["manifest"].items())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    for kind in ("training_adapter", "start_adapter"):
        assert (tmp_path / spec[kind]).is_file()
        assert Path(spec[kind]).relative_to("pocket").as_posix() in spec["manifest"]


@pytest.mark.slow
def test_an_export_that_fails_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "pocket").mkdir()
    (tmp_path / "pocket" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), _replacing_folder(tmp_path / "pocket") as fresh:
        (fresh / "new").write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["pocket", "old"]
    with _replacing_folder(tmp_path / "pocket") as fresh:
        (fresh / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["pocket", "new"]


def test_untrained_base_has_judges_with_an_honest_card(tmp_path):
    from safetensors.torch import load_file
    from transformers import CLIPModel, ResNetModel

    folder = init_base(tmp_path / "pocket", config=PocketConfig.tiny())
    facts = json.loads((folder / "judges" / "judges.json").read_text())
    heads = load_file(folder / "judges" / "attributes.safetensors")
    clip = CLIPModel.from_pretrained(folder / "judges" / "clip")
    reader, identity = (ResNetModel.from_pretrained(folder / "judges" / name) for name in ("attributes", "identity"))
    assert clip.dtype == reader.dtype == identity.dtype == torch.float32
    for name, values in facts["attributes"].items():
        assert heads[f"{name}.weight"].shape == (len(values), reader.config.hidden_sizes[-1])
        assert np.shape(facts["confusion"][name]) == (len(values), len(values))
    assert heads["identity.projection"].shape[1] == identity.config.hidden_sizes[-1]
    assert set(facts["card"]) == {*facts["attributes"], "identity_map"}
