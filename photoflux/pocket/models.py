"""Untrained networks of the pocket base and its judges, in the classes and folder formats of the real ones."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from photoflux.pocket.tokenizers import clip_tokenizer, lower_case_ids, t5_tokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPModel, CLIPTextModel, ResNetModel, T5EncoderModel


@dataclass(frozen=True)
class PocketConfig:
    """Sizes of the pocket base. `tiny()` is the same geometry for tests that only need the shapes."""

    resolution_px: int = 128
    steps: int = 4
    text_length: int = 24
    vae_channels: tuple[int, int, int, int] = (16, 32, 64, 64)
    heads: int = 5
    double_blocks: int = 2
    single_blocks: int = 4
    clip_width: int = 96
    t5_width: int = 128
    text_layers: int = 2
    judge_width: int = 144
    judge_layers: int = 4
    judge_patch_px: int = 16
    judge_channels: tuple[int, ...] = (32, 64, 128, 256)
    embedding: int = 96

    @classmethod
    def tiny(cls) -> PocketConfig:
        return cls(
            vae_channels=(8, 8, 16, 16),
            heads=1,
            double_blocks=1,
            single_blocks=1,
            clip_width=32,
            t5_width=32,
            text_layers=1,
            judge_width=48,
            judge_layers=1,
            judge_channels=(8, 16),
            embedding=32,
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def build_base(config: PocketConfig, *, seed: int, vocabulary: list[str]) -> FluxPipeline:
    """An untrained FLUX pipeline: `[B, 16, H/8, W/8]` latents, 4 Euler steps on a linear schedule, no guidance."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    torch.manual_seed(seed)
    tokenizer = clip_tokenizer(vocabulary, length=config.text_length)
    tokenizer_2 = t5_tokenizer(vocabulary, length=config.text_length)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False),
        vae=build_vae(config),
        text_encoder=build_clip_text(config, tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=build_t5(config, tokenizer_2),
        tokenizer_2=tokenizer_2,
        transformer=build_transformer(config),
    )


def build_vae(config: PocketConfig) -> AutoencoderKL:
    """`[B, 3, H, W]` in [-1, 1] <-> `[B, 16, H/8, W/8]`, no attention, no quantisation convolutions."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=config.vae_channels,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=config.resolution_px,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def build_transformer(config: PocketConfig) -> FluxTransformer2DModel:
    """The FLUX transformer at width `32 * heads`; every block starts as the identity, which trains faster."""
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=config.double_blocks,
        num_single_layers=config.single_blocks,
        attention_head_dim=32,
        num_attention_heads=config.heads,
        joint_attention_dim=config.t5_width,
        pooled_projection_dim=config.clip_width,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    for name, module in transformer.named_modules():
        if name == "proj_out" or (name.endswith(".linear") and "norm" in name):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def _clip_text_config(config: PocketConfig, tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": config.clip_width,
        "intermediate_size": 2 * config.clip_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.clip_width // 32,
        "max_position_embeddings": config.text_length,
        "projection_dim": config.embedding,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def build_clip_text(config: PocketConfig, tokenizer: Any) -> CLIPTextModel:
    """Token ids `[B, L]` -> pooled `[B, clip_width]`, read at the end token."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**_clip_text_config(config, tokenizer)))


def build_t5(config: PocketConfig, tokenizer: Any) -> T5EncoderModel:
    """Token ids `[B, L]` -> sequence `[B, L, t5_width]`."""
    from transformers import T5Config, T5EncoderModel

    sizes = T5Config(
        vocab_size=len(tokenizer),
        d_model=config.t5_width,
        d_kv=32,
        num_heads=config.t5_width // 32,
        d_ff=2 * config.t5_width,
        num_layers=config.text_layers,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        is_encoder_decoder=False,
        use_cache=False,
        tie_word_embeddings=False,
    )
    return T5EncoderModel(sizes)


def build_clip_judge(config: PocketConfig, tokenizer: Any) -> CLIPModel:
    """Image and text towers with one embedding space of `config.embedding` dimensions."""
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": config.judge_width,
        "intermediate_size": 3 * config.judge_width,
        "num_hidden_layers": config.judge_layers,
        "num_attention_heads": config.judge_width // 48,
        "image_size": config.resolution_px,
        "patch_size": config.judge_patch_px,
        "projection_dim": config.embedding,
    }
    return CLIPModel(
        CLIPConfig(
            text_config=_clip_text_config(config, tokenizer),
            vision_config=vision,
            projection_dim=config.embedding,
        )
    )


def build_convolutional_judge(config: PocketConfig) -> ResNetModel:
    """Image -> pooled state `[B, judge_channels[-1], 1, 1]`; a linear layer maps it to an embedding or to classes.

    A ViT of this size learns too slowly from scratch: .14 of kinds read right after 150 s, against .49.
    """
    from transformers import ResNetConfig, ResNetModel

    channels = list(config.judge_channels)
    sizes = {"embedding_size": channels[0], "hidden_sizes": channels, "depths": [1] * len(channels)}
    return ResNetModel(ResNetConfig(**sizes, layer_type="basic"))


def lora_targets(config: PocketConfig) -> list[str]:
    """Module names for peft: attention and feed-forward of the double blocks, both projections of the single ones.

    Single blocks' `proj_out` are named in full, since the bare suffix would also match the network's output layer.
    """
    attention = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    forward = [f"{net}.net.{layer}" for net in ("ff", "ff_context") for layer in ("0.proj", "2")]
    single = [f"single_transformer_blocks.{block}.proj_out" for block in range(config.single_blocks)]
    return [*(f"attn.{name}" for name in attention), *forward, "proj_mlp", *single]


def tie_case(pipe: FluxPipeline) -> None:
    """Give capitalised words the T5 embedding of the lower-case word: training captions are lower case."""
    embedding = pipe.text_encoder_2.get_input_embeddings().weight.data
    pairs = lower_case_ids(pipe.tokenizer_2)
    embedding[list(pairs)] = embedding[list(pairs.values())]


def image_processor(config: PocketConfig) -> dict[str, Any]:
    """The judges' `preprocessor_config.json`: RGB at the base's size, mapped to [-1, 1]."""
    size = {"height": config.resolution_px, "width": config.resolution_px}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def drop_local_paths(folder: Path) -> None:
    """Remove the local path that weights were loaded from, from the saved configurations."""
    for file in folder.rglob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def declare_fp32(config: Path) -> None:
    """Have transformers load fp16 files as fp32; unlike diffusers it would keep the stored dtype."""
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "dtype": "float32"}, indent=2, sort_keys=True) + "\n")
