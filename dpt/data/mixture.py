"""Sources made of other sources, and horizontal flips: of the image, the boxes, and "left" and "right" in every text.

An example is not flipped if one of its texts is ambiguous: "right behind the car", "the one that is left", "far R",
"at three o'clock", or an unknown word that contains left or right.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate

from dpt.data.example import (
    ALL_PARTS,
    Example,
    ExampleImage,
    ExampleParts,
    GroundedRegion,
    Negative,
    Negatives,
    ReferringExpression,
    Source,
    Span,
)

PAIRS = {
    f"left{ending}": f"right{ending}"
    for ending in ("", "most", "hand", "side", "ward", "wards", "er", "ish", "y", "handed")
}

SWAPPED = {**PAIRS, **{right: left for left, right in PAIRS.items()}}


BOTH = "(?:left|right)"

NO_SIDE_AT_ALL = re.compile(r"(?:bright|fright|cleft).*|(?:up|out|down|forth|copy)right|(?:play)?wright")
"""Words that contain left or right and mean no side: bright, brighter, frightened, upright."""


NO_SIDE_MEANT = re.compile(
    rf"\b{BOTH}\W+(?:now|away|next|behind|in\W+front|above|below|under\w*|beneath|over|beside|by|near|after|before|at|"
    r"up|down|through|across|outside|inside|against|angles?|there|here|where|out|off|into|onto|alone|open|un\w+)\b"
    rf"|\b(?:all|is|are|was|were|be|been|being|has|have|had|just|nothing|not|any|one|what)\W+{BOTH}\b"
    r"(?!\W+(?:of|side|hand|most)\b)",
    re.I,
)
"""Contexts in which left or right may mean no side. Symmetric, so that a mirrored text can be mirrored back."""


SIDES_IN_OTHER_WORDS = re.compile(r"\b(?:[lr]|lt|rt|lft|rgt|rite|east\w*|west\w*|\w*clockwise|o\W?clock)\b", re.I)

WRITING = re.compile(r"\b(?:says|saying|spells|spelling|letters?|written|initials)\b", re.I)
"""Mirrored letters are unreadable."""


WORD = re.compile(r"[^\W_]+")

Swap = tuple[int, int, str]
"""Start and end of a word, and its replacement."""


def can_mirror(captions: Iterable[str], expression: str = "", spans: Iterable[Span] = ()) -> bool:
    """Whether all texts of an example can be mirrored for sure, and no span cuts a word that changes."""
    swaps = _swaps(expression)
    if swaps is None or any(start < edge < end for start, end, _ in swaps for span in spans for edge in span):
        return False
    return all(_swaps(caption) is not None for caption in captions)


def mirrored(example: Example) -> Example | None:
    """The mirrored example, or None if one of its texts cannot be mirrored."""
    if any(picture.latent and picture.mirrored is None for picture in example.pictures):
        raise ValueError("latents cannot be flipped: the VAE encodes a mirrored image to different latents")
    expression, negatives = example.expression, example.negatives
    caption = None if example.caption is None else mirrored_text(example.caption)
    mirrored_expr = None if expression is None else mirrored_expression(expression)
    mirrored_negs = None if negatives is None else _mirrored_negatives(negatives)
    before, after = (example.caption, expression, negatives), (caption, mirrored_expr, mirrored_negs)
    if any(new is None and old is not None for old, new in zip(before, after, strict=True)):
        return None
    image = _mirrored_picture(example.image)
    return replace(example, image=image, caption=caption, expression=mirrored_expr, negatives=mirrored_negs)


def mirrored_text(text: str) -> str | None:
    swaps = _swaps(text)
    return None if swaps is None else _swapped(text, swaps)


def mirrored_expression(expression: ReferringExpression) -> ReferringExpression | None:
    spans = [span for region in expression.regions for span in region.spans]
    if not can_mirror((), expression.text, spans):
        return None
    swaps = _swaps(expression.text) or []
    regions = []
    for region in expression.regions:
        cx, cy, width, height = region.box
        moved = tuple((_moved(start, swaps), _moved(end, swaps)) for start, end in region.spans)
        regions.append(GroundedRegion((1 - cx, cy, width, height), moved))
    return ReferringExpression(_swapped(expression.text, swaps), tuple(regions), expression.kind)


def _swaps(text: str) -> list[Swap] | None:
    """The words that change; None if the text is ambiguous."""
    if any(pattern.search(text) for pattern in (SIDES_IN_OTHER_WORDS, NO_SIDE_MEANT, WRITING)):
        return None
    swaps = []
    for word in WORD.finditer(text):
        other = _other_side(word.group())
        if other is None:
            return None
        if other != word.group():
            swaps.append((word.start(), word.end(), other))
    return swaps


def _swapped(text: str, swaps: Sequence[Swap]) -> str:
    parts, copied = [], 0
    for start, end, other in swaps:
        parts += [text[copied:start], other]
        copied = end
    return "".join([*parts, text[copied:]])


def _moved(edge: int, swaps: Sequence[Swap]) -> int:
    return edge + sum(len(other) - (end - start) for start, end, other in swaps if end <= edge)


def _other_side(word: str) -> str | None:
    """The word for the other side; the word itself if it names no side; None if that is unknown."""
    lower = word.lower()
    if "left" not in lower and "right" not in lower:
        return word
    if lower in SWAPPED:
        other = SWAPPED[lower]
        forms = {lower: other, lower.capitalize(): other.capitalize(), lower.upper(): other.upper()}
        return forms.get(word)
    return word if NO_SIDE_AT_ALL.fullmatch(lower) else None


def _mirrored_negatives(negatives: Negatives) -> Negatives | None:
    hard = _mirrored_negative(negatives.hard)
    random = None if negatives.random is None else _mirrored_negative(negatives.random)
    if hard is None or (random is None) != (negatives.random is None):
        return None
    return Negatives(hard, random)


def _mirrored_negative(negative: Negative) -> Negative | None:
    caption = mirrored_text(negative.caption)
    return None if caption is None else replace(negative, caption=caption, image=_mirrored_picture(negative.image))


def _mirrored_picture(picture: ExampleImage) -> ExampleImage:
    if picture.mirrored is not None:
        return replace(picture, values=picture.mirrored, mirrored=picture.values)
    return replace(picture, values=picture.values.flip(-1))


class EveryNth(Source):
    """The examples 0, n, 2n, … of a source: validation on a fixed subset."""

    def __init__(self, source: Source, n: int) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        self.source, self.n = source, n

    def __len__(self) -> int:
        return -(-len(self.source) // self.n)

    @property
    def captioned(self) -> bool:
        return self.source.captioned

    def example(self, index: int, epoch: int = 0, parts: ExampleParts = ALL_PARTS) -> Example:
        return self.source.example(index * self.n, epoch, parts)


class Mixture(Source):
    """Several sources, each with its share of the examples: `Mixture([(coco, 0.8), (own_pictures, 0.2)])`.

    An epoch of the mixture shows the first source once, and as much of the others as their shares ask for. Each
    source goes through epochs of its own: none of its examples comes back before all have been shown. A shuffled
    `Stream` interleaves them; which example stands at a position depends on the stream's seed and the position only.
    """

    def __init__(self, sources: Sequence[tuple[Source, float]]) -> None:
        if not sources or any(not share > 0 for _, share in sources):
            raise ValueError("a mixture needs at least one source, each with a positive share")
        self.sources = [source for source, _ in sources]
        first, share = sources[0]
        self.counts = [max(1, round(len(first) * own / share)) for _, own in sources]
        self._ends = list(accumulate(self.counts))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def captioned(self) -> bool:
        return all(source.captioned for source in self.sources)

    def example(self, index: int, epoch: int = 0, parts: ExampleParts = ALL_PARTS) -> Example:
        nth = bisect_right(self._ends, index)
        source, count = self.sources[nth], self.counts[nth]
        position = epoch * count + index - (self._ends[nth] - count)
        return source.example(position % len(source), position // len(source), parts)
