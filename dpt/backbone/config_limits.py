"""Sane sizes of a model's config: what comes with a model from elsewhere is checked before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpt.errors import UserError

# Several times what any published image or text model has.
LIMITS = {
    "attention_head_dim": 1 << 14,
    "block_out_channels": 1 << 15,
    "caption_projection_dim": 1 << 16,
    "context_in_dim": 1 << 16,
    "cross_attention_dim": 1 << 16,
    "d_ff": 1 << 18,
    "d_kv": 1 << 14,
    "d_model": 1 << 16,
    "decoder_layers": 512,
    "depth": 512,
    "encoder_layers": 512,
    "hidden_size": 1 << 16,
    "image_size": 1 << 14,
    "in_channels": 1 << 12,
    "intermediate_size": 1 << 18,
    "joint_attention_dim": 1 << 16,
    "latent_channels": 1 << 12,
    "layers_per_block": 64,
    "max_position_embeddings": 1 << 20,
    "num_attention_heads": 1 << 12,
    "num_heads": 1 << 12,
    "num_hidden_layers": 512,
    "num_layers": 512,
    "num_single_layers": 512,
    "num_queries": 1 << 16,
    "num_train_timesteps": 1 << 20,
    "out_channels": 1 << 12,
    "patch_size": 1 << 8,
    "pooled_projection_dim": 1 << 16,
    "pos_embed_max_size": 1 << 12,
    "projection_dim": 1 << 16,
    "sample_size": 1 << 12,
    "transformer_layers_per_block": 64,
    "vocab_size": 1 << 22,
}

LONGEST_LIST = 64


def check_sizes(config: Mapping[str, Any], file: Path, depth: int = 0) -> None:
    """Refuse a config, or a config nested in it, whose sizes no model has."""
    for key, value in config.items():
        if isinstance(value, Mapping) and depth < 4:
            check_sizes(value, file, depth + 1)
        if (limit := LIMITS.get(key)) is None:
            continue
        if isinstance(value, list) and len(value) > LONGEST_LIST:
            raise UserError(f"{file}: {key} has {len(value)} entries, and no model more than {LONGEST_LIST}")
        for size in value if isinstance(value, list) else [value]:
            if isinstance(size, int | float) and not 0 <= size <= limit:
                raise UserError(f"{file}: {key} is {size}, which no model has (0 to {limit}): the config is damaged")


MAY_BE_ZERO = ("num_single_layers", "num_single_dit_layers", "guidance_embeds")


def check_whole_numbers(config: Mapping[str, Any], keys: Iterable[str], file: Path) -> None:
    """Refuse a config in which one of these keys is no whole number, or is 0 where a model has at least 1."""
    for key in keys:
        value, least = config[key], 0 if key in MAY_BE_ZERO else 1
        if not isinstance(value, int) or value < least:
            raise UserError(f"{file}: {key} should be a whole number from {least} up, not {value!r}")


def check_vae_scaling(config: Mapping[str, Any], file: Path) -> None:
    """Latents are multiplied by one number and shifted by another: both finite, and the first not 0."""
    scale, shift = config.get("scaling_factor", 1.0), config.get("shift_factor")
    if not _is_finite(scale) or scale == 0:
        raise UserError(f"{file}: scaling_factor should be a finite number other than 0, not {scale!r}")
    if shift is not None and not _is_finite(shift):
        raise UserError(f"{file}: shift_factor should be a finite number, not {shift!r}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
