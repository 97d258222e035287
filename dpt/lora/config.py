"""How a LoRA is shaped, and which projections of a UNet it belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from dpt.backbone.features import block_names
from dpt.errors import UserError

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""Of every attention layer: query, key, value and output."""

HALVES = {"down": "bottom", "mid": "mid", "up": "up"}

_PLACE = re.compile(r"(?:(down)_blocks\.(\d+)|(mid)_block|(up)_blocks\.(\d+))\..*\.attn[12]\.(?:to_[qkv]|to_out\.0)")


@dataclass(frozen=True)
class LoraConfig:
    """W + (alpha / rank) B A, with A (rank, in) and B (out, rank)."""

    rank: int = 4
    alpha: float | None = None
    """As much as the rank unless told: then the addition is not scaled, as published."""
    blocks: tuple[str, ...] = ("all",)
    """all as in the published code; down as the paper's figure draws it; mid, up; or blocks by their feature names."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"the rank of a LoRA must be at least 1, not {self.rank}")
        if self.alpha is not None and not (isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"the alpha of a LoRA must be positive, not {self.alpha}")
        if not self.blocks:
            raise UserError("a LoRA must belong to some block; all, for instance")

    @property
    def strength(self) -> float:
        """alpha, resolved."""
        return float(self.rank if self.alpha is None else self.alpha)

    @property
    def scale(self) -> float:
        return self.strength / self.rank


def places(unet: Any, blocks: Sequence[str]) -> list[str]:
    """The projections of the attention layers in those blocks, by their names in the UNet, in its order."""
    wanted = _blocks(unet.config, blocks)
    found = [name for name, _ in unet.named_modules() if (block := block_of(name)) and block in wanted]
    if not found:
        raise UserError(f"the blocks {' '.join(blocks)} of this UNet have no attention layer that a LoRA could join")
    return found


def block_of(name: str) -> str | None:
    """The feature name of the block that an attention layer's projection is in; None for any other module."""
    if not (match := _PLACE.fullmatch(name)):
        return None
    down, i, mid, _, j = match.groups()
    return f"bottom{i}" if down else "mid" if mid else f"up{j}"


def _blocks(config: Any, asked: Sequence[str]) -> set[str]:
    known = list(block_names(config))
    chosen: set[str] = set()
    for name in asked:
        if name == "all":
            chosen |= set(known)
        elif name in HALVES:
            chosen |= {block for block in known if block.startswith(HALVES[name])}
        elif name in known:
            chosen.add(name)
        else:
            raise UserError(f"there is no block {name!r} for a LoRA; valid are all, down, mid, up, {', '.join(known)}")
    return chosen
