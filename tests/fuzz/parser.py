"""A parser under test: a function that reads a file, valid samples, and ways to break them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.limits import MIB
from tests.fuzz.mutations import Mutation, mutate_bytes


@dataclass(frozen=True)
class Target:
    file: Path
    """Each case is written here."""
    samples: Sequence[bytes]
    """Valid files."""
    read: Callable[[], object]


@dataclass(frozen=True)
class Parser:
    name: str
    make: Callable[[Path], Target]
    """Set up a new folder with the files that the parser expects beside this one."""
    mutations: tuple[Mutation, ...] = (mutate_bytes,)
    hostile: tuple[bytes, ...] = ()
    """Complete files written to do harm; they are the first cases."""
    memory: int = 256 * MIB
    """Bytes that the process may grow by."""

    def case(self, target: Target, number: int) -> bytes:
        """The case is a function of the parser's name and the number alone."""
        if number < len(target.samples):
            return target.samples[number]
        if number < len(target.samples) + len(self.hostile):
            return self.hostile[number - len(target.samples)]
        rng = Random(f"{self.name} {number}")
        return rng.choice(self.mutations)(rng.choice(target.samples), rng)
