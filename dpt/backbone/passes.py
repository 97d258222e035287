"""Counts passes through the denoising network: the cost of a method that no machine changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class PassCounter:
    passes: float = 0.0
    """Forward passes of one image each; with guidance a step takes two. A partial pass counts by its share of the
    blocks, and so does a backward pass, once."""


_active: list[PassCounter] = []


@contextmanager
def count_passes() -> Iterator[PassCounter]:
    """Count the passes of all backbones in this context."""
    counter = PassCounter()
    _active.append(counter)
    try:
        yield counter
    finally:
        _active.remove(counter)


def add_passes(latents: Tensor, share: float = 1.0) -> None:
    """Called by a backbone for each pass. Latents that need a gradient are followed by a backward pass."""
    backward = latents.requires_grad and torch.is_grad_enabled()
    for counter in _active:
        counter.passes += len(latents) * share * (1 + backward)
