"""Random numbers as a function of (seed, index, purpose), never of what was drawn before."""

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
    """A CPU generator: its numbers are the same whichever device they are used on."""
    return torch.Generator().manual_seed(derived_seed(seed, index, purpose))


@dataclass(frozen=True)
class SampleRNG:
    """The random numbers of each sample of a micro-batch, independent of the other samples.

    Dropout is the exception: its masks are drawn for the whole micro-batch, seeded by the first sample, because
    drawing millions of numbers sample by sample would cost more than the step. They survive a resume bit for bit,
    but depend on how the global batch is split.
    """

    seed: int
    positions: Sequence[int]
    """Index of each sample in the run."""

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Standard normal numbers (B,*shape), drawn on the CPU: the same for every device."""
        return torch.stack([torch.randn(*shape, generator=g) for g in self.generators(purpose)])

    def integers(self, below: int, purpose: str) -> Tensor:
        """Integers (B,) in [0, below)."""
        return torch.cat([torch.randint(below, (1,), generator=g) for g in self.generators(purpose)])

    def seed_dropout(self) -> None:
        torch.manual_seed(derived_seed(self.seed, self.positions[0], "dropout"))

    def generators(self, purpose: str) -> Iterator[torch.Generator]:
        return (generator_for(self.seed, position, purpose) for position in self.positions)
