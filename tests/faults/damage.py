"""Flipped bits in checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dpt.training.engine import run_folder


@dataclass(frozen=True)
class BitFlip:
    file: str
    bit: int
    noticed: bool


def flip_bits(folder: Path, name: str, every: int = 1) -> Iterator[BitFlip]:
    """Flip one bit of a file after the other, each restored before the next."""
    file = folder / name
    for bit in range(0, 8 * file.stat().st_size, every):
        flip(file, bit)
        yield BitFlip(name, bit, run_folder.fault(folder) is not None)
        flip(file, bit)


def flip(file: Path, bit: int) -> None:
    with file.open("r+b") as content:
        content.seek(bit // 8)
        old = content.read(1)[0]
        content.seek(bit // 8)
        content.write(bytes([old ^ 1 << bit % 8]))
