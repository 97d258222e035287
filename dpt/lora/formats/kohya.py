"""A LoRA with the names of kohya's scripts, which ComfyUI and A1111 read: module names with underscores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dpt.errors import UserError
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
from dpt.lora.io import StoredLora

UNET, TEXT_ENCODER = "lora_unet_", "lora_te_"
"""Stable Diffusion 1.x and 2.x have one text encoder; the other prefixes belong to models with two."""

OTHER_TEXT_ENCODERS = ("lora_te1_", "lora_te2_")

PARTS = {"lora_down.weight": A, "lora_up.weight": B, "alpha": ALPHA}

SECOND_GENERATION_WIDTH = 1024

_UNET = re.compile(
    r"lora_unet_((?:down|up)_blocks_\d+|mid_block)_attentions_(\d+)_transformer_blocks_(\d+)_(attn[12])_(to_[qkv]|to_out_0)"
)

_TEXT = re.compile(r"lora_te_text_model_encoder_layers_(\d+)_(self_attn|mlp)_(q_proj|k_proj|v_proj|out_proj|fc1|fc2)")


def kohya_name(component: str, module: str) -> str:
    """The name of a module of the `unet` or the `text_encoder`.

    transformers 5.6 removed `text_model` from CLIP's module names; the format still has it.
    """
    if component == "unet":
        return UNET + module.replace(".", "_")
    whole = module if module.startswith("text_model.") else f"text_model.{module}"
    return TEXT_ENCODER + whole.replace(".", "_")


def module_of(name: str) -> tuple[str, str] | None:
    """The component and module of a name without its last part; None for an unknown name."""
    if match := _UNET.fullmatch(name):
        block, attention, transformer, attn, projection = match.groups()
        block = re.sub(r"_(\d+)$", r".\1", block)
        target = f"{block}.attentions.{attention}.transformer_blocks.{transformer}.{attn}"
        return "unet", f"{target}.{projection.replace('to_out_0', 'to_out.0')}"
    if match := _TEXT.fullmatch(name):
        return "text_encoder", "text_model.encoder.layers.{}.{}.{}".format(*match.groups())
    return None


def write_kohya(stored: StoredLora, file: Path, where: str, negative_prompt: str = "") -> None:
    """`negative_prompt`: stated in the metadata, where web UIs show it."""
    check_lora(stored, where)
    require_unet(stored, "kohya", where)
    config = stored.record.config
    tensors: dict[str, Tensor] = {}
    for target in targets_in(stored.tensors):
        name = kohya_name("unet", target)
        tensors[f"{name}.lora_down.weight"] = stored.tensors[f"{target}.{A}"].float()
        tensors[f"{name}.lora_up.weight"] = stored.tensors[f"{target}.{B}"].float()
        tensors[f"{name}.alpha"] = torch.tensor(config.resolved_alpha)
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": f"{config.resolved_alpha:g}",
        "ss_v2": str(_text_width(stored.tensors) == SECOND_GENERATION_WIDTH),
    }
    if negative_prompt:
        metadata["modelspec.usage_hint"] = f"negative prompt: {negative_prompt!r}"
    write_lora_file(tensors, stored.record, file, metadata, hash_key="sshs_model_hash")


def from_kohya(named: Mapping[str, Tensor], metadata: Mapping[str, str], where: str) -> StoredLora:
    """Without an alpha it is the rank, as in kohya's scripts."""
    texts = [key for key in named if key.startswith((TEXT_ENCODER, *OTHER_TEXT_ENCODERS))]
    if texts:
        raise UserError(
            f"{where} changes the text encoder too ({len(texts)} tensors, the first is {texts[0]}); "
            "dpt supports LoRAs of the UNet only"
        )
    return lora_from(named, _recognise, where, record=metadata.get(RECORD_KEY, ""))


def _recognise(key: str) -> tuple[str, str] | None:
    name, _, part = key.partition(".")
    if not name.startswith(UNET) or part not in PARTS or not (module := module_of(name)):
        return None
    return module[1], PARTS[part]


def _text_width(tensors: Mapping[str, Tensor]) -> int:
    """Width of the text states: the input of the cross-attention's keys."""
    return next((tensor.shape[1] for name, tensor in tensors.items() if name.endswith(f"attn2.to_k.{A}")), 0)
