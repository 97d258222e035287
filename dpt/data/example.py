"""One example, whichever source it comes from; and examples put together for one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Span = tuple[int, int]
"""First character, one past the last."""


BoxCorners = tuple[float, float, float, float]
"""x0, y0, x1, y1."""


BoxCentre = tuple[float, float, float, float]
"""Centre x, centre y, width, height, each as a share of the picture."""


@dataclass(frozen=True)
class ExampleImage:
    name: str
    values: Tensor
    """(3, resolution, resolution) in [-1, 1], or the latents (C, h, w) that a cache has of it."""
    latent: bool = False
    mirrored: Tensor | None = None
    """Of latents, those of the mirrored picture, where the cache has them."""


@dataclass(frozen=True)
class GroundedRegion:
    """A box, and the words of the expression that name it. Several boxes may be named by the same words."""

    box: BoxCentre
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class ReferringExpression:
    """r: what is said, and where in the picture that is. No region: nothing it names is in view."""

    text: str
    regions: tuple[GroundedRegion, ...]


@dataclass(frozen=True)
class MatchingExample:
    """y, y-, y?, z-, z?: the picture's caption, and captions and pictures that do not match."""

    caption: str
    hard_caption: str
    random_caption: str
    hard_image: ExampleImage
    random_image: ExampleImage
    hard_caption_type: str | None = None
    hard_image_type: str | None = None


@dataclass(frozen=True)
class Example:
    id: str
    """Where it comes from, for error messages."""
    image: ExampleImage
    expression: ReferringExpression | None = None
    matching: MatchingExample | None = None
    skipped: tuple[str, ...] = ()
    """Of each broken picture for whose example this one stands in: which it is and what is wrong."""

    @property
    def texts(self) -> tuple[str, ...]:
        """r, y, y-, y?, as far as there are any."""
        said = () if self.expression is None else (self.expression.text,)
        match = self.matching
        return said if match is None else (*said, match.caption, match.hard_caption, match.random_caption)

    @property
    def pictures(self) -> tuple[ExampleImage, ...]:
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


@dataclass(frozen=True)
class ExpressionBatch:
    """The boxes of all examples one after another; `counts` says how many each has, none included."""

    texts: list[str]
    boxes: Tensor
    """(sum of counts, 4): centre x, centre y, width, height, each as a share of the picture."""
    counts: list[int]
    spans: list[list[tuple[Span, ...]]]
    """For each example, for each of its boxes, the spans of its text that name the box."""

    def boxes_by_example(self) -> tuple[Tensor, ...]:
        return torch.split(self.boxes, self.counts)


@dataclass(frozen=True)
class MatchingBatch:
    captions: list[str]
    hard_captions: list[str]
    random_captions: list[str]
    hard_images: Tensor
    random_images: Tensor
    hard_caption_types: list[str | None]
    hard_image_types: list[str | None]


@dataclass(frozen=True)
class Batch:
    ids: list[str]
    images: Tensor
    """(B, 3, H, W) in [-1, 1]; or latents (B, C, h, w), and then all three sets of images are."""
    latent: bool
    expressions: ExpressionBatch | None
    matching: MatchingBatch | None
    skipped: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._moved(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        said, match = self.expressions, self.matching
        return replace(
            self,
            images=move(self.images),
            expressions=said and replace(said, boxes=move(said.boxes)),
            matching=match
            and replace(match, hard_images=move(match.hard_images), random_images=move(match.random_images)),
        )


def collate(examples: Sequence[Example]) -> Batch:
    if not examples:
        raise ValueError("a batch needs at least one example")
    pictures = [picture for example in examples for picture in example.pictures]
    if len({(picture.latent, picture.values.shape) for picture in pictures}) > 1:
        raise ValueError("a batch cannot mix latents with pixels, or pictures of several sizes")
    expressions = [example.expression for example in examples if example.expression is not None]
    matchings = [example.matching for example in examples if example.matching is not None]
    if len(expressions) not in (0, len(examples)) or len(matchings) not in (0, len(examples)):
        raise ValueError("a batch cannot mix examples that have an expression, or captions, with such that have none")
    return Batch(
        ids=[example.id for example in examples],
        images=_stack([example.image for example in examples]),
        latent=examples[0].image.latent,
        expressions=_collate_expressions(expressions) if expressions else None,
        matching=_collate_matchings(matchings) if matchings else None,
        skipped=[path for example in examples for path in example.skipped],
    )


def _collate_expressions(expressions: Sequence[ReferringExpression]) -> ExpressionBatch:
    boxes = [region.box for one in expressions for region in one.regions]
    return ExpressionBatch(
        texts=[one.text for one in expressions],
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        counts=[len(one.regions) for one in expressions],
        spans=[[region.spans for region in one.regions] for one in expressions],
    )


def _collate_matchings(matchings: Sequence[MatchingExample]) -> MatchingBatch:
    return MatchingBatch(
        captions=[one.caption for one in matchings],
        hard_captions=[one.hard_caption for one in matchings],
        random_captions=[one.random_caption for one in matchings],
        hard_images=_stack([one.hard_image for one in matchings]),
        random_images=_stack([one.random_image for one in matchings]),
        hard_caption_types=[one.hard_caption_type for one in matchings],
        hard_image_types=[one.hard_image_type for one in matchings],
    )


def _stack(pictures: Sequence[ExampleImage]) -> Tensor:
    return torch.stack([picture.values for picture in pictures])
