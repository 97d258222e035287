"""One training or validation example, whichever source it comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

Span = tuple[int, int]
"""First character, one past the last."""

BoxCorners = tuple[float, float, float, float]
"""x0, y0, x1, y1."""

BoxCentre = tuple[float, float, float, float]
"""Centre x, centre y, width, height, each as a share of the picture."""


@dataclass(frozen=True)
class Picture:
    name: str
    values: Tensor
    """(3, resolution, resolution) in [-1, 1], or the latents (C, h, w) that a cache has of it."""
    latent: bool = False
    mirrored: Tensor | None = None
    """Of latents, those of the mirrored picture, where the cache has them."""


@dataclass(frozen=True)
class Region:
    """A box, and the words of the expression that name it. Several boxes may be named by the same words."""

    box: BoxCentre
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Expression:
    """r: what is said, and where in the picture that is. No region: nothing it names is in view."""

    text: str
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Matching:
    """y, y-, y?, z-, z?: the picture's caption, and captions and pictures that do not match."""

    caption: str
    hard_caption: str
    random_caption: str
    hard_image: Picture
    random_image: Picture
    hard_caption_type: str | None = None
    hard_image_type: str | None = None


@dataclass(frozen=True)
class Example:
    id: str
    """Where it comes from, for error messages."""
    image: Picture
    expression: Expression | None = None
    matching: Matching | None = None
    skipped: tuple[str, ...] = ()
    """Of each broken picture for whose example this one stands in: which it is and what is wrong."""

    @property
    def texts(self) -> tuple[str, ...]:
        """r, y, y-, y?, as far as there are any."""
        said = () if self.expression is None else (self.expression.text,)
        match = self.matching
        return said if match is None else (*said, match.caption, match.hard_caption, match.random_caption)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        match = self.matching
        return (self.image,) if match is None else (self.image, match.hard_image, match.random_image)


class Source(ABC):
    """Examples by index. `example(index, epoch)` depends on nothing but the source and these two numbers."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def example(self, index: int, epoch: int = 0) -> Example:
        """Another epoch may show the same picture with other captions and negatives."""

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no example {index}: there are {len(self)}")
        return self.example(index)


class EveryNth(Source):
    """Of a source only the examples 0, n, 2n, …: validation on a part that stays the same."""

    def __init__(self, source: Source, n: int) -> None:
        if n < 1:
            raise ValueError(f"every n-th example needs n of at least 1, not {n}")
        self.source, self.n = source, n

    def __len__(self) -> int:
        return -(-len(self.source) // self.n)

    def example(self, index: int, epoch: int = 0) -> Example:
        return self.source.example(index * self.n, epoch)
