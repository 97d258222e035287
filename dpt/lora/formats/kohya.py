"""A LoRA with the names of kohya's scripts, which ComfyUI and A1111 read: module names with underscores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dpt.backbone.unet_features import STABLE_DIFFUSION_XL, lora_architecture
from dpt.lora.formats.common import (
    ALPHA,
    RECORD_KEY,
    A,
    B,
    check_lora,
    lora_from,
    require_unet,
    targets_in,
    write_lora_file,
)
from dpt.lora.injection import component_of
from dpt.lora.io import StoredLora

UNET = "lora_unet_"

TEXT_ENCODERS = {"lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
"""Stable Diffusion 1.x and 2.x have one text encoder; the numbered ones belong to XL."""

PREFIXES = (UNET, *TEXT_ENCODERS)

PARTS = {"lora_down.weight": A, "lora_up.weight": B, "alpha": ALPHA}

SECOND_GENERATION_WIDTH = 1024

_UNET = re.compile(
    r"lora_unet_((?:down|up)_blocks_\d+|mid_block)_attentions_(\d+)_transformer_blocks_(\d+)_(attn[12])_(to_[qkv]|to_out_0)"
)

_TEXT = re.compile(
    r"(lora_te[12]?_)text_model_encoder_layers_(\d+)_(self_attn|mlp)_(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
)

_XL = re.compile(
    r"lora_unet_(?:(input|output)_blocks_(\d+)|middle_block)_1_transformer_blocks_(\d+)_(attn[12])_(to_[qkv]|to_out_0)"
)
"""kohya's scripts train Stable Diffusion XL under the module names of its first code base."""

_MODULE = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.(.*)|mid_block\.attentions\.0\.(.*)")

XL_LAYERS = 2
"""Residual layers of each down block of Stable Diffusion XL; up blocks have one more."""


def kohya_name(component: str, module: str, is_xl: bool = False) -> str:
    """The name of a module of the `unet`, the `text_encoder` or the `text_encoder_2`.

    transformers 5.6 removed `text_model` from CLIP's module names; the format still has it.
    """
    if component == "unet":
        return UNET + (_xl_name(module) if is_xl else module).replace(".", "_")
    whole = module if module.startswith("text_model.") else f"text_model.{module}"
    prefix = "lora_te2_" if component == "text_encoder_2" else "lora_te1_" if is_xl else "lora_te_"
    return prefix + whole.replace(".", "_")


def _xl_name(module: str) -> str:
    match = _MODULE.fullmatch(module)
    assert match is not None  # an attention module of a UNet
    side, block, attention, rest, of_middle = match.groups()
    if side is None:
        return f"middle_block.1.{of_middle}"
    position = int(block) * (XL_LAYERS + 1) + int(attention)
    return f"input_blocks.{position + 1}.1.{rest}" if side == "down" else f"output_blocks.{position}.1.{rest}"


def module_of(name: str) -> tuple[str, str] | None:
    """The component and module of a name without its last part; None for an unknown name."""
    if match := _UNET.fullmatch(name):
        block, attention, transformer, attn, projection = match.groups()
        block = re.sub(r"_(\d+)$", r".\1", block)
        target = f"{block}.attentions.{attention}.transformer_blocks.{transformer}.{attn}"
        return "unet", f"{target}.{projection.replace('to_out_0', 'to_out.0')}"
    if match := _XL.fullmatch(name):
        side, number, transformer, attn, projection = match.groups()
        block, attention = divmod(int(number or 0) - (side == "input"), XL_LAYERS + 1)
        where = "mid_block" if side is None else f"{'down' if side == 'input' else 'up'}_blocks.{block}"
        target = f"{where}.attentions.{attention}.transformer_blocks.{transformer}.{attn}"
        return "unet", f"{target}.{projection.replace('to_out_0', 'to_out.0')}"
    if match := _TEXT.fullmatch(name):
        prefix, *rest = match.groups()
        return TEXT_ENCODERS[prefix], "text_model.encoder.layers.{}.{}.{}".format(*rest)
    return None


def write_kohya(stored: StoredLora, file: Path, where: str, negative_prompt: str = "") -> None:
    """`negative_prompt`: stated in the metadata, where web UIs show it."""
    check_lora(stored, where)
    require_unet(stored, "kohya", where)
    config, targets = stored.record.config, targets_in(stored.tensors)
    is_xl = lora_architecture(targets) == STABLE_DIFFUSION_XL
    tensors: dict[str, Tensor] = {}
    for target in targets:
        component = component_of(target)
        name = kohya_name(component or "unet", target.removeprefix(f"{component}."), is_xl)
        tensors[f"{name}.lora_down.weight"] = stored.tensors[f"{target}.{A}"].float()
        tensors[f"{name}.lora_up.weight"] = stored.tensors[f"{target}.{B}"].float()
        tensors[f"{name}.alpha"] = torch.tensor(config.resolved_alpha)
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": f"{config.resolved_alpha:g}",
        "ss_v2": str(_text_width(stored.tensors) == SECOND_GENERATION_WIDTH),
    }
    if is_xl:
        metadata["ss_base_model_version"] = "sdxl_base_v1-0"
    if negative_prompt:
        metadata["modelspec.usage_hint"] = f"negative prompt: {negative_prompt!r}"
    write_lora_file(tensors, stored.record, file, metadata, hash_key="sshs_model_hash")


def from_kohya(named: Mapping[str, Tensor], metadata: Mapping[str, str], where: str) -> StoredLora:
    """Without an alpha it is the rank, as in kohya's scripts."""
    return lora_from(named, _recognise, where, record=metadata.get(RECORD_KEY, ""))


def _recognise(key: str) -> tuple[str, str] | None:
    name, _, part = key.partition(".")
    if part not in PARTS or not (known := module_of(name)):
        return None
    component, module = known
    return module if component == "unet" else f"{component}.{module.removeprefix('text_model.')}", PARTS[part]


def _text_width(tensors: Mapping[str, Tensor]) -> int:
    """Width of the text states: the input of the cross-attention's keys."""
    return next((tensor.shape[1] for name, tensor in tensors.items() if name.endswith(f"attn2.to_k.{A}")), 0)
