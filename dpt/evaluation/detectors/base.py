"""What a detector is: images in, typed objects and unreadable regions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dpt.data.scenes.world import Box

Image = npt.NDArray[np.uint8]
"""(height, width, 3), RGB."""


@dataclass(frozen=True)
class Detection:
    label: str
    """The noun: a shape in this house's worlds, a class name from a zero-shot detector."""
    box: Box
    confidence: float
    """From 0 to 1."""
    colour: str | None = None
    """None: this detector does not tell."""
    size: str | None = None


@dataclass(frozen=True)
class Unreadable:
    """A region that shows something, but nothing that can be named without guessing."""

    box: Box
    why: str


@dataclass(frozen=True)
class Detections:
    """All that was seen in one image."""

    objects: tuple[Detection, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    clipped: int = 0
    """Boxes that reached past the picture and were cut to it."""
    outside: int = 0
    """Boxes with nothing of the picture in them: taken off, since they show no object of it."""


class Detector(Protocol):
    @property
    def identity(self) -> str:
        """Name, version and thresholds in one line: stored with every result it produced."""
        ...

    @property
    def classes(self) -> tuple[str, ...] | None:
        """All nouns it can name; None if it can look for any."""
        ...

    def detect(
        self, images: Sequence[Image], queries: Sequence[Sequence[str]] | None = None
    ) -> list[Detections]:
        """One `Detections` per image. `queries[i]` are the nouns to look for in image i, for detectors that
        must be told; those that know their world ignore them."""
        ...
