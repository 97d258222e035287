"""A LoRA as diffusers writes one: `pytorch_lora_weights.safetensors`, with rank and alpha in its metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dpt.errors import UserError
from dpt.lora.formats.common import RECORD_KEY, A, B, check_lora, lora_from, of_transformer, targets_in, write_lora_file
from dpt.lora.injection import LoraConfig
from dpt.lora.io import StoredLora
from dpt.untrusted import parse_json
from dpt.weights import listed

FILE_NAME = "pytorch_lora_weights.safetensors"

CONFIG_KEY = "lora_adapter_metadata"

UNET, TRANSFORMER, TEXT_ENCODER = "unet.", "transformer.", "text_encoder."

UNSUPPORTED = ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "lora_bias")

_KEY = re.compile(r"(?:unet|transformer)\.(.+)\.(?:(lora\.down|lora_A)|(lora\.up|lora_B))\.weight")

_OLD_KEY = re.compile(r"(?:unet|transformer)\.(.+)\.processor\.(to_[qkv]|to_out)_lora\.(?:(down)|(up))\.weight")


def write_diffusers(stored: StoredLora, file: Path, where: str) -> None:
    check_lora(stored, where)
    targets = sorted(targets_in(stored.tensors))
    network, name_of = (TRANSFORMER, str) if of_transformer(targets) else (UNET, _old_name)
    tensors = {f"{network}{name_of(name)}": tensor.float() for name, tensor in stored.tensors.items()}
    described = _peft_config(stored.record.config, targets, network)
    write_lora_file(tensors, stored.record, file, {CONFIG_KEY: json.dumps(described, indent=2, sort_keys=True)})


def from_diffusers(named: Mapping[str, Tensor], metadata: Mapping[str, str], where: str) -> StoredLora:
    """Reads old and new names, as diffusers does. Without metadata, alpha is the rank, as in diffusers."""
    if texts := [key for key in named if key.startswith(TEXT_ENCODER)]:
        raise UserError(
            f"{where} changes the text encoder too ({len(texts)} tensors, the first is {texts[0]}); "
            "dpt supports LoRAs of the UNet or transformer only"
        )
    described = _read_peft_config(metadata[CONFIG_KEY], where) if CONFIG_KEY in metadata else {}
    stored = lora_from(named, _recognise, where, _number(described, "lora_alpha", where), metadata.get(RECORD_KEY, ""))
    rank = _number(described, "r", where)
    if rank is not None and rank != stored.record.config.rank:
        raise UserError(f"{where} has rank {rank:g} in its metadata and {stored.record.config.rank} in its tensors")
    return stored


def _peft_config(config: LoraConfig, targets: list[str], network: str) -> dict[str, Any]:
    """What peft needs to know; all else is its default."""
    alpha = config.resolved_alpha
    return {
        f"{network}r": config.rank,
        f"{network}lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        f"{network}target_modules": targets,
    }


def _read_peft_config(text: str, where: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{where}: the metadata {CONFIG_KEY} is not valid JSON")
    described = {
        key.removeprefix(network): value
        for network in (UNET, TRANSFORMER)
        for key, value in content.items()
        if key.startswith(network)
    }
    if unusual := [key for key in UNSUPPORTED if described.get(key)]:
        raise UserError(f"{where} is a LoRA of a kind that dpt does not support: it has {listed(unusual)}")
    return described


def _number(described: Mapping[str, Any], key: str, where: str) -> float | None:
    value = described.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{where} has {value!r} as its {key}, which is not a number")
    return None if value is None else float(value)


def _old_name(name: str) -> str:
    return name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")


def _recognise(key: str) -> tuple[str, str] | None:
    if match := _OLD_KEY.fullmatch(key):
        layer, projection, down, _ = match.groups()
        return f"{layer}.{projection}{'.0' if projection == 'to_out' else ''}", A if down else B
    if match := _KEY.fullmatch(key):
        target, down, _ = match.groups()
        return target, A if down else B
    return None
