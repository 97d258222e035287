"""A LoRA as diffusers writes one: `pytorch_lora_weights.safetensors`, with rank and alpha in its metadata."""

from __future__ import annotations

import json
import re
from collections import defaultdict
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

UNET, TRANSFORMER, TEXT_ENCODERS = "unet.", "transformer.", ("text_encoder.", "text_encoder_2.")

UNSUPPORTED = ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "lora_bias")

_KEY = re.compile(r"(?:unet|transformer)\.(.+)\.(?:(lora\.down|lora_A)|(lora\.up|lora_B))\.weight")

_TEXT_KEY = re.compile(
    r"(text_encoder(?:_2)?)\.(?:text_model\.)?(encoder\.layers\.\d+\.self_attn\.[a-z]+_proj)\."
    r"(?:(lora_linear_layer\.down|lora_A)|(lora_linear_layer\.up|lora_B))\.weight"
)

_OLD_KEY = re.compile(r"(?:unet|transformer)\.(.+)\.processor\.(to_[qkv]|to_out)_lora\.(?:(down)|(up))\.weight")


def write_diffusers(stored: StoredLora, file: Path, where: str) -> None:
    check_lora(stored, where)
    network = TRANSFORMER if of_transformer(targets_in(stored.tensors)) else UNET
    tensors, targets = {}, defaultdict(list)
    for name, tensor in stored.tensors.items():
        prefix, module = _split(name, network)
        tensors[f"{prefix}{_old_name(module) if prefix == UNET else module}"] = tensor.float()
    for target in sorted(targets_in(stored.tensors)):
        prefix, module = _split(target, network)
        targets[prefix].append(module)
    described = {
        key: value
        for prefix, modules in targets.items()
        for key, value in _peft_config(stored.record.config, modules, prefix).items()
    }
    write_lora_file(tensors, stored.record, file, {CONFIG_KEY: json.dumps(described, indent=2, sort_keys=True)})


def _split(name: str, network: str) -> tuple[str, str]:
    """The component's prefix in the file, and the module's name in it."""
    component, _, module = name.partition(".")
    return (f"{component}.", f"text_model.{module}") if f"{component}." in TEXT_ENCODERS else (network, name)


def from_diffusers(named: Mapping[str, Tensor], metadata: Mapping[str, str], where: str) -> StoredLora:
    """Reads old and new names, as diffusers does. Without metadata, alpha is the rank, as in diffusers."""
    configs = _read_peft_configs(metadata[CONFIG_KEY], where) if CONFIG_KEY in metadata else {}
    configs = {prefix: own for prefix, own in configs.items() if any(key.startswith(prefix) for key in named)}
    alphas, ranks = ({_number(config, key, where) for config in configs.values()} for key in ("lora_alpha", "r"))
    if len(alphas) > 1:
        raise UserError(f"{where} has more than one alpha, which dpt does not support: {', '.join(map(str, alphas))}")
    stored = lora_from(named, _recognise, where, next(iter(alphas), None), metadata.get(RECORD_KEY, ""))
    for rank in ranks:
        if rank is not None and rank != stored.record.config.rank:
            raise UserError(f"{where} has rank {rank:g} in its metadata and {stored.record.config.rank} in its tensors")
    return stored


def _peft_config(config: LoraConfig, targets: list[str], prefix: str) -> dict[str, Any]:
    """What peft needs to know; all else is its default."""
    alpha = config.resolved_alpha
    return {
        f"{prefix}r": config.rank,
        f"{prefix}lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        f"{prefix}target_modules": _either_name(targets) if prefix in TEXT_ENCODERS else targets,
    }


def _either_name(modules: list[str]) -> str:
    """A regular expression of these modules: since transformers 5.6 those of CLIPTextModel have no `text_model`."""
    names = "|".join(re.escape(module.removeprefix("text_model.")) for module in modules)
    return rf"(text_model\.)?({names})"


def _read_peft_configs(text: str, where: str) -> dict[str, dict[str, Any]]:
    """By the component's prefix."""
    try:
        content = parse_json(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{where}: the metadata {CONFIG_KEY} is not valid JSON")
    described: dict[str, dict[str, Any]] = {}
    for prefix in (UNET, TRANSFORMER, *TEXT_ENCODERS):
        if own := {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}:
            described[prefix] = own
    for own in described.values():
        if unusual := [key for key in UNSUPPORTED if own.get(key)]:
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
    if match := _TEXT_KEY.fullmatch(key):
        component, module, down, _ = match.groups()
        return f"{component}.{module}", A if down else B
    return None
