"""A LoRA as diffusers writes one: `pytorch_lora_weights.safetensors`, whose metadata says rank and alpha."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dpt.errors import UserError
from dpt.lora.config import LoraConfig
from dpt.lora.formats.common import RECORD_KEY, A, B, check_lora, listed, lora_from, places_in, write_lora_file
from dpt.lora.io import StoredLora
from dpt.untrusted import parse_json

FILE_NAME = "pytorch_lora_weights.safetensors"

CONFIG_KEY = "lora_adapter_metadata"

UNET, TEXT_ENCODER = "unet.", "text_encoder."

_KEY = re.compile(r"unet\.(.+)\.(?:(lora\.down|lora_A)|(lora\.up|lora_B))\.weight")

_OLD_KEY = re.compile(r"unet\.(.+)\.processor\.(to_[qkv]|to_out)_lora\.(?:(down)|(up))\.weight")


def write_diffusers(stored: StoredLora, file: Path, where: str) -> None:
    check_lora(stored, where)
    tensors = {f"{UNET}{_spelled(name)}": tensor.float() for name, tensor in stored.tensors.items()}
    said = _said(stored.record.config, sorted(places_in(stored.tensors)))
    write_lora_file(tensors, stored.record, file, {CONFIG_KEY: json.dumps(said, indent=2, sort_keys=True)})


def from_diffusers(named: Mapping[str, Tensor], metadata: Mapping[str, str], where: str) -> StoredLora:
    """Names of any age that current diffusers reads. Without metadata, alpha is the rank, as diffusers has it."""
    if texts := [key for key in named if key.startswith(TEXT_ENCODER)]:
        raise UserError(
            f"{where} changes the text encoder too ({len(texts)} tensors, {texts[0]} for one), and a LoRA of dpt "
            "changes the UNet only"
        )
    said = _read_said(metadata[CONFIG_KEY], where) if CONFIG_KEY in metadata else {}
    stored = lora_from(named, _recognise, where, _number(said, "lora_alpha", where), metadata.get(RECORD_KEY, ""))
    rank = _number(said, "r", where)
    if rank is not None and rank != stored.record.config.rank:
        raise UserError(f"{where} says that its rank is {rank:g}, and its tensors have {stored.record.config.rank}")
    return stored


def _said(config: LoraConfig, places: list[str]) -> dict[str, Any]:
    """What peft needs to be told; everything else is its default, in this version of it or another."""
    alpha = config.strength
    return {
        f"{UNET}r": config.rank,
        f"{UNET}lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        f"{UNET}target_modules": places,
    }


def _read_said(text: str, where: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"what {where} says about its rank and alpha is not valid JSON")
    said = {key.removeprefix(UNET): value for key, value in content.items() if key.startswith(UNET)}
    unusual = [key for key in ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "lora_bias") if said.get(key)]
    if unusual:
        raise UserError(f"{where} is a LoRA of a kind that dpt does not know how to use: it has {listed(unusual)}")
    return said


def _number(said: Mapping[str, Any], key: str, where: str) -> float | None:
    value = said.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{where} says that its {key} is {value!r}, which is no number")
    return None if value is None else float(value)


def _spelled(name: str) -> str:
    return name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")


def _recognise(key: str) -> tuple[str, str] | None:
    if match := _OLD_KEY.fullmatch(key):
        layer, projection, down, _ = match.groups()
        return f"{layer}.{projection}{'.0' if projection == 'to_out' else ''}", A if down else B
    if match := _KEY.fullmatch(key):
        place, down, _ = match.groups()
        return place, A if down else B
    return None
