"""Weights and inputs from names alone, as the reference values in this folder were made."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def recipe(key: str, shape: Sequence[int], norm: bool = False, scale: float = 0.05) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode("utf-8")))
    values = torch.randn(tuple(shape), generator=generator, dtype=torch.float32) * scale
    return values + 1.0 if norm else values


def recipe_input(name: str, shape: Sequence[int], scale: float = 1.0) -> Tensor:
    return recipe(f"input:{name}", shape, scale=scale)


def recipe_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """One-dimensional `*.weight` tensors are the gains of norms."""
    return {key: recipe(key, shape, norm=len(shape) == 1 and key.endswith(".weight")) for key, shape in shapes.items()}
