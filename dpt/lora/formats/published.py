"""The published checkpoint's names for a LoRA, which are those of diffusers 0.20. There is no alpha in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from dpt.errors import UserError
from dpt.lora.formats.common import A, B, check_lora, lora_from, require_unet, targets_in
from dpt.lora.injection import is_text_target
from dpt.lora.io import StoredLora
from dpt.weights import listed

PREFIX = "unet."

_KEY = re.compile(r"(.+\.attn[12])\.processor\.(to_[qkv]|to_out)_lora\.(down|up)\.weight")

_ATTENTION = re.compile(r"((?:down|up)_blocks)\.(\d+)\.attentions\.(\d+)\..*")


def from_published(named: Mapping[str, Tensor], where: str) -> StoredLora:
    """Names with or without `unet.`; alpha is the rank, since nothing scales the tensors."""
    stored = lora_from(named, _recognise, where)
    if missing := _missing_layers(targets_in(stored.tensors)):
        raise UserError(f"the LoRA in {where} is not whole: it lacks {listed(missing)}")
    return stored


def to_published(stored: StoredLora, where: str) -> dict[str, Tensor]:
    """With the scale multiplied into B."""
    check_lora(stored, where)
    require_unet(stored, "published", where)
    if any(map(is_text_target, targets_in(stored.tensors))):
        raise UserError(
            f"{where} is a LoRA of text encoders too, for which the format published has no names: use --format "
            "diffusers or kohya"
        )
    named = {}
    for target in targets_in(stored.tensors):
        layer, _, projection = target.rpartition(".attn")
        key = f"{PREFIX}{layer}.attn{projection[0]}.processor.{projection[2:].removesuffix('.0')}_lora"
        named[f"{key}.down.weight"] = stored.tensors[f"{target}.{A}"].float()
        named[f"{key}.up.weight"] = stored.record.config.scale * stored.tensors[f"{target}.{B}"].float()
    return named


def _recognise(key: str) -> tuple[str, str] | None:
    if not (match := _KEY.fullmatch(key.removeprefix(PREFIX))):
        return None
    layer, projection, matrix = match.groups()
    return f"{layer}.{projection}{'.0' if projection == 'to_out' else ''}", A if matrix == "down" else B


def _missing_layers(targets: list[str]) -> list[str]:
    """Layers missing at the end of a block: in the models of the published code, all down blocks have equally many
    attention layers, and so have all up blocks."""
    counts: dict[str, Counter[int]] = {}
    for target in targets:
        if match := _ATTENTION.fullmatch(target):
            kind, block, attention = match[1], int(match[2]), int(match[3])
            counts.setdefault(kind, Counter())[block] = max(counts.get(kind, Counter())[block], attention + 1)
    return [
        f"{kind}.{block}.attentions.{i}"
        for kind, blocks in counts.items()
        for block, count in sorted(blocks.items())
        for i in range(count, max(blocks.values()))
    ]
