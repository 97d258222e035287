"""An example of any source, and the batch that a step reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from dpt.backbone.base import Condition, ImageSizes

T = TypeVar("T")

Span = tuple[int, int]
"""Start and end in characters; the end is exclusive."""

BoxCorners = tuple[float, float, float, float]
"""x0, y0, x1, y1."""


BoxCentre = tuple[float, float, float, float]
"""cx, cy, width, height, each relative to the image."""


@dataclass(frozen=True)
class ExampleImage:
    name: str
    values: Tensor
    """(3, resolution, resolution) in [-1, 1], or cached latents (C, h, w)."""
    latent: bool = False
    mirrored: Tensor | None = None
    """Latents of the mirrored image, where the cache has them."""
    sizes: ImageSizes | None = None
    """For a model that is conditioned on them."""


@dataclass(frozen=True)
class GroundedRegion:
    """A box and the words of the expression that name it. The same words may name several boxes."""

    box: BoxCentre
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class ReferringExpression:
    """A phrase and the boxes it refers to. No regions: nothing it names is in view."""

    text: str
    regions: tuple[GroundedRegion, ...]
    kind: str = ""
    """How it refers, if that is known: by attributes, by a relation, or as an extreme such as "leftmost"."""


@dataclass(frozen=True)
class Negative:
    """A caption that is false for the example's image, and an image that its caption is false for."""

    caption: str
    image: ExampleImage
    caption_type: str | None = None
    """What the caption changed (colour, relation, count, shape), where the source knows."""
    image_type: str | None = None


@dataclass(frozen=True)
class Negatives:
    """`hard` differs from the example in one fact; `random` comes from an unrelated example."""

    hard: Negative
    random: Negative | None = None


@dataclass(frozen=True)
class ExampleParts:
    """What a task reads of an example beside its image and caption. Sources decode and render nothing else.

    The parts decide what is left out, never what the rest looks like.
    """

    expression: bool = True
    hard_negatives: bool = True
    random_negatives: bool = True
    """Taken only together with `hard_negatives`."""


ALL_PARTS = ExampleParts()

CAPTION_ONLY = ExampleParts(expression=False, hard_negatives=False, random_negatives=False)


@dataclass(frozen=True)
class Example:
    id: str
    """Where it comes from, for error messages."""
    image: ExampleImage
    caption: str | None = None
    """None: the source has expressions only."""
    weight: float = 1.0
    """Factor of this example's denoising loss."""
    expression: ReferringExpression | None = None
    negatives: Negatives | None = None
    skipped: tuple[str, ...] = ()
    """One sentence for each broken image whose place this example takes."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Expression, caption, hard negative caption, random caption, as far as they exist."""
        texts = [] if self.expression is None else [self.expression.text]
        texts += [] if self.caption is None else [self.caption]
        return (*texts, *(negative.caption for negative in self._negatives))

    @property
    def pictures(self) -> tuple[ExampleImage, ...]:
        return (self.image, *(negative.image for negative in self._negatives))

    @property
    def _negatives(self) -> tuple[Negative, ...]:
        if self.negatives is None:
            return ()
        return (self.negatives.hard,) if self.negatives.random is None else (self.negatives.hard, self.negatives.random)


class Source(ABC):
    """Examples by index. `example(index, epoch, parts)` depends on nothing but the source and its arguments."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def example(self, index: int, epoch: int = 0, parts: ExampleParts = ALL_PARTS) -> Example:
        """Another epoch may show the same image with another caption and other negatives."""

    @property
    def captioned(self) -> bool:
        """Whether its examples have captions."""
        return True

    def captions(self) -> Iterable[str]:
        """Captions of the user's that it trains on, for a check of their words; scenes have none."""
        return ()

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no example {index}: there are {len(self)}")
        return self.example(index)


@dataclass(frozen=True)
class ExpressionBatch:
    """The boxes of all examples in one tensor; `num_boxes` says how many belong to each example, 0 included."""

    texts: list[str]
    boxes: Tensor
    """(sum of num_boxes, 4): cxcywh relative to the image."""
    num_boxes: list[int]
    spans: list[list[tuple[Span, ...]]]
    """For each example, for each of its boxes, the spans of its text that name the box."""
    kinds: list[str] = field(default_factory=list)
    """How each refers; "" if unknown."""

    def boxes_by_example(self) -> tuple[Tensor, ...]:
        return torch.split(self.boxes, self.num_boxes)


@dataclass(frozen=True)
class NegativeBatch:
    captions: list[str]
    images: Tensor
    caption_types: list[str | None]
    image_types: list[str | None]
    sizes: Tensor | None = None
    """As in `Batch`."""


@dataclass(frozen=True)
class NegativesBatch:
    hard: NegativeBatch
    random: NegativeBatch | None


@dataclass(frozen=True)
class EncodedTexts:
    """Texts of a batch that a cache knows, read ahead of the step that needs them."""

    rows: dict[str, int]
    """Of each text, its row in the condition."""
    condition: Condition


class TextCache(Protocol):
    """Texts that the same text encoder has encoded before."""

    def read(self, texts: Sequence[str]) -> EncodedTexts | None:
        """Those of the texts that it holds, on the CPU and in the encoder's dtype; None if it holds none of them."""


@dataclass(frozen=True)
class Batch:
    ids: list[str]
    images: Tensor
    """(B, 3, H, W) in [-1, 1]; or latents (B, C, h, w), and then those of the negatives are latents too."""
    latent: bool
    captions: list[str] | None
    weights: Tensor
    """(B,)"""
    expressions: ExpressionBatch | None
    negatives: NegativesBatch | None
    skipped: list[str]
    encoded: EncodedTexts | None = None
    """Those of its texts that need no text encoder."""
    sizes: Tensor | None = None
    """(B, 6): `ImageSizes.row` of each image, for a model that is conditioned on them."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        expressions, negatives = self.expressions, self.negatives
        if expressions is not None:
            expressions = replace(expressions, boxes=move(expressions.boxes))
        if negatives is not None:
            hard, random = negatives.hard, negatives.random
            negatives = NegativesBatch(_moved(hard, move), random and _moved(random, move))
        encoded = self.encoded and replace(self.encoded, condition=self.encoded.condition.map(move))
        return replace(
            self,
            encoded=encoded,
            images=move(self.images),
            weights=move(self.weights),
            expressions=expressions,
            negatives=negatives,
            sizes=None if self.sizes is None else move(self.sizes),
        )


def _moved(negative: NegativeBatch, move: Callable[[Tensor], Tensor]) -> NegativeBatch:
    sizes = None if negative.sizes is None else move(negative.sizes)
    return replace(negative, images=move(negative.images), sizes=sizes)


def collate(examples: Sequence[Example]) -> Batch:
    if not examples:
        raise ValueError("a batch needs at least one example")
    pictures = [picture for example in examples for picture in example.pictures]
    if len({(picture.latent, picture.values.shape) for picture in pictures}) > 1:
        raise ValueError("a batch cannot mix latents with pixels, or images of several sizes")
    captions = _all_or_none([example.caption for example in examples], "a caption")
    expressions = _all_or_none([example.expression for example in examples], "an expression")
    negatives = _all_or_none([example.negatives for example in examples], "negatives")
    return Batch(
        ids=[example.id for example in examples],
        images=_stack([example.image for example in examples]),
        latent=examples[0].image.latent,
        captions=captions,
        weights=torch.tensor([example.weight for example in examples], dtype=torch.float32),
        expressions=None if expressions is None else _collate_expressions(expressions),
        negatives=None if negatives is None else _collate_negatives(negatives),
        skipped=[sentence for example in examples for sentence in example.skipped],
        sizes=_stack_sizes([example.image for example in examples]),
    )


def _all_or_none(values: Sequence[T | None], what: str) -> list[T] | None:
    present = [value for value in values if value is not None]
    if len(present) not in (0, len(values)):
        raise ValueError(f"a batch cannot mix examples that have {what} with examples that have none")
    return present or None


def _collate_expressions(expressions: Sequence[ReferringExpression]) -> ExpressionBatch:
    boxes = [region.box for expression in expressions for region in expression.regions]
    return ExpressionBatch(
        texts=[expression.text for expression in expressions],
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        num_boxes=[len(expression.regions) for expression in expressions],
        spans=[[region.spans for region in expression.regions] for expression in expressions],
        kinds=[expression.kind for expression in expressions],
    )


def _collate_negatives(negatives: Sequence[Negatives]) -> NegativesBatch:
    random = _all_or_none([negative.random for negative in negatives], "a random negative")
    hard = _collate_negative([negative.hard for negative in negatives])
    return NegativesBatch(hard, None if random is None else _collate_negative(random))


def _collate_negative(negatives: Sequence[Negative]) -> NegativeBatch:
    return NegativeBatch(
        captions=[negative.caption for negative in negatives],
        images=_stack([negative.image for negative in negatives]),
        caption_types=[negative.caption_type for negative in negatives],
        image_types=[negative.image_type for negative in negatives],
        sizes=_stack_sizes([negative.image for negative in negatives]),
    )


def _stack(pictures: Sequence[ExampleImage]) -> Tensor:
    return torch.stack([picture.values for picture in pictures])


def _stack_sizes(pictures: Sequence[ExampleImage]) -> Tensor | None:
    sizes = _all_or_none([picture.sizes for picture in pictures], "sizes")
    return None if sizes is None else torch.tensor([own.row() for own in sizes], dtype=torch.float32)
