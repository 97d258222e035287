"""Sources made of other sources."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from dpt.data.example import ALL_PARTS, Example, ExampleParts, Source


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
