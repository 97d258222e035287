"""Randomness as a function of (seed, index, purpose), never of what was drawn before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def derived_seed(seed: int, index: int, purpose: str) -> int:
    """A 63-bit seed; two that differ in any argument are unrelated."""
    digest = hashlib.sha256(f"{seed}/{index}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(seed: int, index: int, purpose: str) -> torch.Generator:
    """A generator on the CPU, whose numbers are the same whatever device they are used on."""
    return torch.Generator().manual_seed(derived_seed(seed, index, purpose))


@dataclass(frozen=True)
class SampleRNG:
    """What each sample of a micro-batch meets.

    Dropout is the exception: masks are drawn for a whole micro-batch, keyed by its first sample, because drawing
    millions of numbers one sample at a time would cost more than the step. They survive a resume bit for bit, but
    another split of the global batch draws others.
    """

    seed: int
    positions: Sequence[int]
    """Where in the run each sample of the micro-batch stands."""

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """(B,*shape) of standard normal numbers, made on the CPU: the same on every device."""
        return torch.stack([torch.randn(*shape, generator=own) for own in self._generators(purpose)])

    def integers(self, below: int, purpose: str) -> Tensor:
        """(B,) of whole numbers in [0, below)."""
        return torch.cat([torch.randint(below, (1,), generator=own) for own in self._generators(purpose)])

    def seed_dropout(self) -> None:
        torch.manual_seed(derived_seed(self.seed, self.positions[0], "dropout"))

    def _generators(self, purpose: str) -> Iterator[torch.Generator]:
        return (generator_for(self.seed, position, purpose) for position in self.positions)
