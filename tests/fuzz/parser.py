"""What is under test: something that reads a file, and good files for it to begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.limits import MIB
from tests.fuzz.mutate import Way, changed_bytes


@dataclass(frozen=True)
class Target:
    file: Path
    """Every case is written there."""
    samples: Sequence[bytes]
    """Good ones."""
    read: Callable[[], object]


@dataclass(frozen=True)
class Parser:
    name: str
    make: Callable[[Path], Target]
    """In a fresh folder, with all that lies beside the file."""
    ways: tuple[Way, ...] = (changed_bytes,)
    nasty: tuple[bytes, ...] = ()
    """Whole files thought out to do harm; they are the first cases."""
    memory: int = 256 * MIB
    """By how much the process may grow."""

    def case(self, target: Target, number: int) -> bytes:
        """A function of the parser's name and the number, and of nothing else."""
        if number < len(target.samples):
            return target.samples[number]
        if number < len(target.samples) + len(self.nasty):
            return self.nasty[number - len(target.samples)]
        rng = Random(f"{self.name} {number}")
        return rng.choice(self.ways)(rng.choice(target.samples), rng)
