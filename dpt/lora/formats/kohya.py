"""A LoRA under the names of kohya's scripts, which ComfyUI and A1111 read: modules spelled with underscores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dpt.errors import UserError
from dpt.lora.formats.common import ALPHA, RECORD_KEY, A, B, check_lora, lora_from, places_in, write_lora_file
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
    """Of a module of the `unet` or the `text_encoder`.

    transformers 5.6 flattened CLIP's text model; the name that the field knows still has its `text_model`.
    """
    if component == "unet":
        return UNET + module.replace(".", "_")
    whole = module if module.startswith("text_model.") else f"text_model.{module}"
    return TEXT_ENCODER + whole.replace(".", "_")


def module_of(name: str) -> tuple[str, str] | None:
    """The component and the module in it that a name without its last part means; None if it is none that we know."""
    if match := _UNET.fullmatch(name):
        block, attention, transformer, attn, projection = match.groups()
        block = re.sub(r"_(\d+)$", r".\1", block)
        place = f"{block}.attentions.{attention}.transformer_blocks.{transformer}.{attn}"
        return "unet", f"{place}.{projection.replace('to_out_0', 'to_out.0')}"
    if match := _TEXT.fullmatch(name):
        return "text_encoder", "text_model.encoder.layers.{}.{}.{}".format(*match.groups())
    return None


def write_kohya(stored: StoredLora, file: Path, where: str) -> None:
    check_lora(stored, where)
    config = stored.record.config
    tensors: dict[str, Tensor] = {}
    for place in places_in(stored.tensors):
        name = kohya_name("unet", place)
        tensors[f"{name}.lora_down.weight"] = stored.tensors[f"{place}.{A}"].float()
        tensors[f"{name}.lora_up.weight"] = stored.tensors[f"{place}.{B}"].float()
        tensors[f"{name}.alpha"] = torch.tensor(config.strength)
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": f"{config.strength:g}",
        "ss_v2": str(_text_width(stored.tensors) == SECOND_GENERATION_WIDTH),
    }
    write_lora_file(tensors, stored.record, file, metadata, hash_key="sshs_model_hash")


def from_kohya(named: Mapping[str, Tensor], metadata: Mapping[str, str], where: str) -> StoredLora:
    """Where no alpha is given it is the rank, as kohya's scripts have it."""
    texts = [key for key in named if key.startswith((TEXT_ENCODER, *OTHER_TEXT_ENCODERS))]
    if texts:
        raise UserError(
            f"{where} changes the text encoder too ({len(texts)} tensors, {texts[0]} for one), and a LoRA of dpt "
            "changes the UNet only"
        )
    return lora_from(named, _recognise, where, record=metadata.get(RECORD_KEY, ""))


def _recognise(key: str) -> tuple[str, str] | None:
    name, _, part = key.partition(".")
    if not name.startswith(UNET) or part not in PARTS or not (found := module_of(name)):
        return None
    return found[1], PARTS[part]


def _text_width(tensors: Mapping[str, Tensor]) -> int:
    """Of the texts that the UNet reads: what the keys of its cross-attention take in."""
    return next((tensor.shape[1] for name, tensor in tensors.items() if name.endswith(f"attn2.to_k.{A}")), 0)
