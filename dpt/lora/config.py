"""How a LoRA is shaped, and which blocks of a network it joins."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from dpt.errors import UserError

LARGEST_SCALE = 1e4
"""Of alpha / rank. Useful ones are around 1; beyond this, float32 overflows and pictures are black."""


@dataclass(frozen=True)
class LoraConfig:
    """W + (alpha / rank) B A, with A (rank, in) and B (out, rank)."""

    rank: int = 4
    alpha: float | None = None
    """None: equal to the rank, so that the addition is not scaled, as published."""
    blocks: tuple[str, ...] = ("all",)
    """all as in the published code; down as the paper's figure draws it; mid, up; or blocks by their feature names."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"the rank of a LoRA must be at least 1, not {self.rank}")
        if self.alpha is not None and not (isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"the alpha of a LoRA must be positive, not {self.alpha:g}")
        if self.scale > LARGEST_SCALE:
            raise UserError(
                f"the alpha of a LoRA of rank {self.rank} must be at most {LARGEST_SCALE * self.rank:g}, "
                f"not {self.resolved_alpha:g}"
            )
        if not self.blocks:
            raise UserError("a LoRA must have at least one block, for instance all")

    @property
    def resolved_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)

    @property
    def scale(self) -> float:
        return self.resolved_alpha / self.rank
