"""Pretraining of the pocket judges: attribute classifier, identity encoder, CLIP.

All learn from renders and from VAE-decoded renders, because generated images look like the latter. The generator is never trained
with them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from photoflux.manifest import replacing, write_json
from photoflux.pocket import models
from photoflux.pocket.data import Cache, classes, render_batch, render_views, stream
from photoflux.pocket.train_vae import VAE_BATCH, decode, encode, to_unit
from photoflux.pocket.training import Budget, Recipe, Run, load_average, math_attention, mixed_precision

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FluxPipeline

log = logging.getLogger(__name__)

CLIP = Recipe(lr=1e-3, muon_lr=2e-3, warmup_steps=50, weight_decay=0.02, ema=0.998)
CONVOLUTIONAL = Recipe(lr=3e-3, muon_lr=1e-2, warmup_steps=50, weight_decay=0.02, ema=0.998)
SHARES = {"attributes": 0.5, "identity": 0.35, "clip": 0.15}
"""How the judges' budget is divided."""
TEMPERATURE = 0.1
VIEWS = 4


class AttributeJudge(nn.Module):
    """A convolutional encoder and one linear head per attribute."""

    def __init__(self, config: models.PocketConfig) -> None:
        super().__init__()
        self.encoder = models.build_convolutional_judge(config).to(memory_format=torch.channels_last)
        width = config.judge_channels[-1]
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in classes().items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`[N, 3, H, W]` in [-1, 1] -> logits per attribute."""
        pooled = self.encoder(pixel_values=images).pooler_output.flatten(1)
        return {name: head(pooled) for name, head in self.heads.items()}


class ClipJudge(nn.Module):
    """The CLIP model; auxiliary attribute heads, which are not exported, supervise what captions leave out."""

    def __init__(self, config: models.PocketConfig, tokenizer: Any) -> None:
        super().__init__()
        self.clip = models.build_clip_judge(config, tokenizer)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(config.judge_width, len(values)) for name, values in classes().items()}
        )

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`[N, 3, H, W]` in [-1, 1] -> image embedding `[N, D]` (unit length) and logits per attribute."""
        pooled = self.clip.vision_model(pixel_values=images).pooler_output
        embedding = F.normalize(self.clip.visual_projection(pooled), dim=-1)
        return embedding, {name: head(pooled) for name, head in self.heads.items()}

    def text(self, ids: Tensor) -> Tensor:
        """CLIP ids `[N, L]` -> text embedding `[N, D]` (unit length)."""
        pooled = self.clip.text_model(input_ids=ids).pooler_output
        return F.normalize(self.clip.text_projection(pooled), dim=-1)


class IdentityJudge(nn.Module):
    """A convolutional encoder and the projection of its pooled state."""

    def __init__(self, config: models.PocketConfig) -> None:
        super().__init__()
        self.encoder = models.build_convolutional_judge(config).to(memory_format=torch.channels_last)
        self.projection = nn.Linear(config.judge_channels[-1], config.embedding, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` in [-1, 1] -> `[N, D]`, unit length."""
        return F.normalize(self.projection(self.encoder(pixel_values=images).pooler_output.flatten(1)), dim=-1)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 4 px, blur a third, and vary brightness and noise a little; colours are unchanged, since they are labels."""
    count, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator, device=device)

    dx, dy = torch.randint(-4, 5, (2,), generator=generator, device=device).tolist()
    size = images.shape[-1]
    images = F.pad(images, (4, 4, 4, 4), mode="replicate")[:, :, 4 + dy : 4 + dy + size, 4 + dx : 4 + dx + size]
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.where(uniform(0, 1) < 0.3, soft, images).contiguous(memory_format=torch.channels_last)
    noise = torch.randn(images.shape, generator=generator, device=device) * uniform(0, 0.04)
    return (images * uniform(0.95, 1.05) + uniform(-0.04, 0.04) + noise).clamp(-1, 1)


def attribute_loss(logits: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Sum over attributes of the cross-entropy of the pictures that have the attribute; `labels [N, A]`, -1: none."""
    has = (labels >= 0).sum(dim=0).clamp(min=1)
    terms = [
        F.cross_entropy(scores, labels[:, column], ignore_index=-1, reduction="sum") / has[column]
        for column, scores in enumerate(logits.values())
    ]
    return torch.stack(terms).sum()


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of unit vectors `[N, D]`: each picture finds its caption and each caption its picture."""
    logits = scale.clamp(max=4.6).exp() * images @ texts.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def supervised_contrastive_loss(embeddings: Tensor, subjects: Tensor) -> Tensor:
    """SupCon (Khosla et al. 2020): views of one subject attract, all else repels; unit vectors `[N, D]`, ids `[N]`."""
    diagonal = torch.eye(len(subjects), dtype=torch.bool, device=subjects.device)
    logits = (embeddings @ embeddings.T / TEMPERATURE).masked_fill(diagonal, -1e9)
    same = (subjects[:, None] == subjects[None, :]) & ~diagonal
    log_share = logits - logits.logsumexp(dim=1, keepdim=True)
    return -((log_share * same).sum(dim=1) / same.sum(dim=1).clamp(min=1)).mean()


def decoded_images(vae: AutoencoderKL, cache: Cache, *, file: Path, count: int) -> np.memmap:
    """The last `count` cached latents, decoded once: uint8 `[count, H, W, 3]` on disk. Continued after a kill."""
    done, device, count = file.with_suffix(".filled.json"), next(vae.parameters()).device, min(count, cache.filled)
    shape, batch = (count, cache.size_px, cache.size_px, 3), 8 * VAE_BATCH[device.type]
    mode = "r+" if file.exists() else "w+"
    pool = np.lib.format.open_memmap(file, mode=mode, dtype="uint8", shape=None if mode == "r+" else shape)
    first = cache.filled - len(pool)
    for start in range(int(done.read_text()) if done.exists() else 0, len(pool), batch):
        stop = min(start + batch, len(pool))
        latents = torch.from_numpy(cache.latents[first + start : first + stop].astype(np.float32))
        pool[start:stop] = decode(vae, latents.to(device))
        write_json(done, stop)
    return pool


class Pool:
    """The cached images, as drawn and VAE-decoded: training data of the attribute judge and of CLIP.

    On a CPU they stay on disk.
    """

    def __init__(self, cache: Cache, decoded: np.ndarray, device: torch.device) -> None:
        as_drawn, self.device = cache.pixels[: cache.filled], device
        self.pixels = [torch.from_numpy(pixels).to(device) for pixels in (as_drawn, decoded)]
        self.first = [0, cache.filled - len(decoded)]
        self.labels = torch.from_numpy(cache.labels[: cache.filled]).to(device)
        self.clip_ids = torch.from_numpy(cache.clip_ids[: cache.filled, 0]).to(device)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Varied pictures `[N, 3, H, W]`, half of them after the VAE, class ids `[N, A]`, caption ids `[N, L]`.

        Half of all are mirrored: no attribute depends on the side.
        """
        options: dict[str, Any] = {"generator": generator, "device": self.device}
        rows = [torch.randint(len(pixels), (count // 2,), **options) for pixels in self.pixels]
        images = to_unit(torch.cat([pixels[at] for pixels, at in zip(self.pixels, rows, strict=True)]), self.device)
        mirrored = torch.rand((len(images), 1, 1, 1), **options) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
        both = torch.cat([at + first for at, first in zip(rows, self.first, strict=True)])
        return augment(images, generator), self.labels[both].long(), self.clip_ids[both].long()


def train_attribute_judge(
    judge: AttributeJudge, pool: Pool, *, file: Path, budget: Budget, seed: int, batch: int
) -> Run:
    """Cross-entropy of every attribute that a picture has. Averaged weights at the end."""
    run = Run("judge-attributes", judge, file, budget, CONVOLUTIONAL, seed=seed)
    for step in run:
        images, labels, _ = pool.sample(batch, run.generator(step))
        with mixed_precision(run.device):
            loss = attribute_loss(judge(images), labels)
        run.update(loss, images=len(images))
    run.ema.copy_to(judge)
    return run


def train_clip_judge(judge: ClipJudge, pool: Pool, *, file: Path, budget: Budget, seed: int, batch: int) -> Run:
    """Contrastive plus attribute loss. Averaged weights at the end."""
    run = Run("judge-clip", judge, file, budget, CLIP, seed=seed)
    for step in run:
        images, labels, ids = pool.sample(batch, run.generator(step))
        with mixed_precision(run.device), math_attention(run.device):
            embedding, logits = judge(images)
            loss = attribute_loss(logits, labels) + contrastive_loss(embedding, judge.text(ids), judge.clip.logit_scale)
        run.update(loss, images=len(images))
    run.ema.copy_to(judge)
    return run


def train_identity_judge(
    judge: IdentityJudge,
    pool: np.ndarray,
    *,
    file: Path,
    budget: Budget,
    seed: int,
    batch: int,
    size_px: int,
    workers: int,
) -> Run:
    """SupCon over fresh subjects and, in the other half of each batch, over the decoded ones of `pool`.

    `pool` is uint8 `[S, VIEWS, H, W, 3]`. Averaged weights at the end.
    """
    run = Run("judge-identity", judge, file, budget, CONVOLUTIONAL, seed=seed)
    subjects = max(2, batch // VIEWS // 2)
    task = partial(render_views, seed=seed + 10, subjects=subjects, views=VIEWS, size_px=size_px)
    fresh = stream(task, start=run.step, workers=workers, ahead=4 * max(1, workers))
    for step in run:
        generator = run.generator(step)
        pixels, numbers = next(fresh)
        first = torch.randint(len(pool) - subjects + 1, (1,), generator=generator, device=run.device).item()
        pooled = pool[first : first + subjects].reshape(-1, *pool.shape[2:])
        subject_ids = np.concatenate([numbers, np.repeat(np.arange(subjects) + subjects, VIEWS)])
        images = augment(to_unit(np.concatenate([pixels, pooled]), run.device), generator)
        with mixed_precision(run.device):
            embeddings = judge(images).float()
        run.update(
            supervised_contrastive_loss(embeddings, torch.from_numpy(subject_ids).to(run.device)), images=len(images)
        )
    fresh.close()
    run.ema.copy_to(judge)
    return run


def decoded_views(
    vae: AutoencoderKL, *, file: Path, seed: int, subjects: int, size_px: int, workers: int
) -> np.ndarray:
    """Views of fresh subjects after the VAE, uint8 `[subjects, VIEWS, H, W, 3]`, kept in `file`."""
    if file.exists():
        return np.load(file, mmap_mode="r")
    some = min(16, subjects)
    task = partial(render_views, seed=seed, subjects=some, views=VIEWS, size_px=size_px)
    drawn = stream(task, workers=workers, ahead=4 * max(1, workers))
    pool = np.concatenate([through_vae(vae, next(drawn)[0]) for _ in range(-(-subjects // some))])
    drawn.close()
    with replacing(file) as written:
        np.save(written, pool.reshape(-1, VIEWS, size_px, size_px, 3)[:subjects])
    return np.load(file, mmap_mode="r")


def through_vae(vae: AutoencoderKL, pixels: np.ndarray) -> np.ndarray:
    """Encode and decode uint8 pictures `[N, H, W, 3]`."""
    return decode(vae, encode(vae, pixels))


def _parts(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(array), size):
        yield array[start : start + size]


@torch.no_grad()
def predict(judge: AttributeJudge, pixels: np.ndarray) -> np.ndarray:
    """Class ids `[N, A]` that the heads give to uint8 pictures `[N, H, W, 3]`."""
    device = next(judge.parameters()).device
    parts = [judge(to_unit(part, device)) for part in _parts(pixels, 128)]
    columns = [torch.cat([part[name] for part in parts]).argmax(dim=1) for name in judge.heads]
    return torch.stack(columns, dim=1).cpu().numpy()


def confusion_counts(truth: np.ndarray, predicted: np.ndarray) -> dict[str, list[list[int]]]:
    """Attribute -> `counts[true][predicted]`, over the pictures that have the attribute; both inputs `[N, A]`."""
    counts = {}
    for column, (name, values) in enumerate(classes().items()):
        has = truth[:, column] >= 0
        table = np.zeros((len(values), len(values)), dtype=int)
        np.add.at(table, (truth[has, column], predicted[has, column]), 1)
        counts[name] = table.tolist()
    return counts


def balanced_accuracy(counts: list[list[int]]) -> float:
    """Mean over the classes that occur of the share of their pictures read right."""
    table = np.asarray(counts, dtype=float)
    seen = table.sum(axis=1) > 0
    return float((table.diagonal()[seen] / table.sum(axis=1)[seen]).mean()) if seen.any() else 0.0


def mean_average_precision(embeddings: np.ndarray, subjects: np.ndarray) -> float:
    """Each picture queries all others by cosine; the mean of the average precisions of finding its own subject."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1)[:, :-1]
    hits = subjects[order] == subjects[:, None]
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return float(((precision * hits).sum(axis=1) / hits.sum(axis=1)).mean())


@torch.no_grad()
def evaluate_judges(
    reader: AttributeJudge,
    identity: IdentityJudge,
    vae: AutoencoderKL,
    *,
    seed: int,
    count: int,
    subjects: int,
    size_px: int,
) -> dict[str, Any]:
    """The judge card from unseen VAE-decoded renders, in the form of `judges.json`."""
    truth, predicted = [], []
    for index in range(max(1, count // 64)):
        batch = render_batch(index, seed=seed, count=min(64, count), size_px=size_px)
        truth.append(batch.labels)
        predicted.append(predict(reader, through_vae(vae, batch.pixels)))
    confusion = confusion_counts(np.concatenate(truth), np.concatenate(predicted))
    pixels, numbers = render_views(0, seed=seed + 1, subjects=subjects, views=VIEWS, size_px=size_px, heldout=True)
    device = next(identity.parameters()).device
    parts = [identity(to_unit(through_vae(vae, part), device)).cpu().numpy() for part in _parts(pixels, 64)]
    card = {name: round(balanced_accuracy(table), 4) for name, table in confusion.items()}
    card["identity_map"] = round(mean_average_precision(np.concatenate(parts), numbers), 4)
    return {
        "version": 1,
        "attributes": {name: list(values) for name, values in classes().items()},
        "heads": {name: {"encoder": "attributes"} for name in classes()},
        "confusion": confusion,
        "card": card,
    }


def train_judges(
    pipe: FluxPipeline,
    cache: Cache,
    *,
    config: models.PocketConfig,
    work: Path,
    budget: Budget,
    seed: int,
    decoded: int,
    batch: int,
    workers: int,
    quick: bool = False,
) -> dict[str, Any]:
    """Train the judges, each for its share of the budget, measure them and write `work/judges.json`."""
    vae, size_px = pipe.vae.eval().to(memory_format=torch.channels_last), config.resolution_px
    device = next(vae.parameters()).device
    judges = Judges.build(config, pipe.tokenizer, seed=seed).to(device)
    pool = Pool(cache, decoded_images(vae, cache, file=work / "decoded.npy", count=decoded), device)
    options: dict[str, dict[str, Any]] = {
        name: {"file": work / f"judge-{name}.pt", "budget": part(budget, share), "batch": batch}
        for name, share in SHARES.items()
    }
    train_attribute_judge(judges.attributes, pool, seed=seed + 8, **options["attributes"])
    views = decoded_views(
        vae,
        file=work / "views.npy",
        seed=seed + 5,
        subjects=max(batch // 4, decoded // 16),
        size_px=size_px,
        workers=workers,
    )
    train_identity_judge(judges.identity, views, seed=seed + 6, size_px=size_px, workers=workers, **options["identity"])
    train_clip_judge(judges.clip, pool, seed=seed + 4, **options["clip"])
    count, subjects = (64, 8) if quick else (1024, 48)
    facts = evaluate_judges(
        judges.attributes, judges.identity, vae, seed=seed + 7, count=count, subjects=subjects, size_px=size_px
    )
    write_json(work / "judges.json", facts)
    log.info("judges: %s", facts["card"])
    return facts


def part(budget: Budget, share: float) -> Budget:
    """A share of the time; a number of steps holds for each part."""
    return Budget(seconds=budget.seconds * share, steps=budget.steps)


@dataclass(frozen=True)
class Judges:
    """The three networks."""

    attributes: AttributeJudge
    identity: IdentityJudge
    clip: ClipJudge

    @classmethod
    def build(cls, config: models.PocketConfig, tokenizer: Any, *, seed: int) -> Judges:
        """Untrained, the same for a seed."""
        torch.manual_seed(seed)
        return cls(AttributeJudge(config), IdentityJudge(config), ClipJudge(config, tokenizer))

    def to(self, device: torch.device) -> Judges:
        for judge in vars(self).values():
            judge.to(device)
        return self

    def load(self, work: Path) -> Judges:
        """Load the averaged weights from a work folder, for evaluation."""
        for name, judge in vars(self).items():
            load_average(work / f"judge-{name}.pt", judge)
            judge.eval()
        return self


def export_judges(
    folder: Path, *, work: Path | None, config: models.PocketConfig, tokenizer: Any, vae: AutoencoderKL, seed: int
) -> Path:
    """Save the judges in their present state (untrained without `work`): two transformers folders, heads and card, fp16."""
    import json

    from safetensors.torch import save_file

    judges = Judges.build(config, tokenizer, seed=seed).load(work or folder)
    if work and (work / "judges.json").exists():
        facts = json.loads((work / "judges.json").read_text())
    else:
        facts = evaluate_judges(
            judges.attributes,
            judges.identity,
            vae.eval(),
            seed=seed + 7,
            count=64,
            subjects=8,
            size_px=config.resolution_px,
        )
    encoders = {"attributes": judges.attributes.encoder, "identity": judges.identity.encoder, "clip": judges.clip.clip}
    for name, model in encoders.items():
        model.to(torch.float16).save_pretrained(folder / name, safe_serialization=True)
        models.declare_fp32(folder / name / "config.json")
        write_json(folder / name / "preprocessor_config.json", models.image_processor(config))
    tokenizer.save_pretrained(folder / "clip")
    heads = judges.attributes.heads.state_dict()
    tensors = {**heads, "identity.projection": judges.identity.projection.weight}
    tensors = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "attributes.safetensors")
    write_json(folder / "judges.json", facts)
    return folder
