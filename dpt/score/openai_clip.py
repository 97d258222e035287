"""CLIP weights under OpenAI's names (also open_clip's), as released with HPS v1 and v2, for a transformers model.

Such a file has no configuration. A CLIP in the transformers layout supplies it: its shape must be that of the weights,
and its activation the one they were trained with, which the weights alone do not show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dpt.errors import UserError
from dpt.weights import is_plain, read_pickle

UNSTORED = ("input_resolution", "context_length", "vocab_size", "logit_bias")
"""Numbers that OpenAI's archives keep beside the weights."""

GELU_VISION_WIDTH = 1280
"""Of ViT-H/14, which was trained with GELU. OpenAI's own models, all narrower, were trained with QuickGELU."""

_TOP = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}

_TRANSPOSED = ("text_projection", "visual.proj")

_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")

_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def read_openai_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of an `hpc.pth`: `{"state_dict": {...}}` or the dict itself. Nothing in the file is executed."""
    content = read_pickle(file, "file")
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file} is not a CLIP checkpoint: it holds more than named tensors")
    named = {str(key).removeprefix("module."): value for key, value in content.items()}
    named = {key: value for key, value in named.items() if key not in UNSTORED}
    if odd := [key for key, value in named.items() if not is_plain(value)]:
        raise UserError(f"{file} holds more than plain floating-point numbers: {odd[0]}")
    if "visual.conv1.weight" not in named:
        what = "a ResNet CLIP" if "visual.layer1.0.conv1.weight" in named else "not a CLIP with OpenAI's names"
        raise UserError(f"{file} is {what}: a vision transformer with visual.conv1.weight is needed")
    return named


def to_transformers(named: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The same weights under the names of transformers' CLIPModel."""
    converted: dict[str, Tensor] = {}
    for key, value in named.items():
        if key in _TOP:
            converted[_TOP[key]] = value.T.contiguous() if key in _TRANSPOSED else value
        elif match := _BLOCK.fullmatch(key):
            tower = "vision_model" if match[1] else "text_model"
            converted |= _block(f"{tower}.encoder.layers.{match[2]}", match[3], value, f"{where}: {key}")
        elif key != "attn_mask":
            raise UserError(f"{where} holds {key}, which no CLIP vision transformer has")
    return {key: value.float() for key, value in converted.items()}


def _block(layer: str, name: str, value: Tensor, where: str) -> dict[str, Tensor]:
    module, _, kind = name.rpartition(".")
    if module in _IN_BLOCK:
        return {f"{layer}.{_IN_BLOCK[module]}.{kind}": value}
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = name.removeprefix("attn.in_proj_")
        if len(value) % 3:
            raise UserError(f"{where} has {len(value)} rows, which are not those of queries, keys and values")
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{layer}.self_attn.{part}_proj.{kind}": rows.contiguous() for part, rows in parts}
    raise UserError(f"{where} is not a weight of a CLIP block")


def activation_of(named: Mapping[str, Tensor]) -> str:
    """The activation that weights with OpenAI's names were trained with."""
    return "gelu" if named["visual.conv1.weight"].shape[0] == GELU_VISION_WIDTH else "quick_gelu"


def check_activation(named: Mapping[str, Tensor], config: Any, file: Path, clip: str) -> None:
    """Refuse a CLIP whose activation is not that of the weights: their scores would differ without any message."""
    meant = activation_of(named)
    computed = {config.vision_config.hidden_act, config.text_config.hidden_act}
    if computed != {meant}:
        raise UserError(
            f"{file} was trained with {meant}, and the CLIP {clip} computes {' and '.join(sorted(computed))}: give a "
            f"--clip whose config.json has hidden_act {meant}"
        )
