"""Best of n: draw more pictures than are wanted, and keep those that an adapter finds to match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from dpt.backbone import Backbone
from dpt.sampling.draw import Drawn, Request
from dpt.sampling.scorer import CLEAN_AT, Scorer


@dataclass(frozen=True)
class Candidate:
    request: Request
    latents: Tensor  # (1,C,h,w)
    score: float

    def decode(self, backbone: Backbone) -> Tensor:
        """(3,H,W) on the CPU, drawn alone or not: the same."""
        return backbone.decode_latents(self.latents)[0].detach().cpu()


def scored(batches: Iterable[Drawn], scorer: Scorer, at: Sequence[float] = CLEAN_AT) -> Iterator[Candidate]:
    """Each picture with its score; all of a batch are scored together."""
    for drawn in batches:
        scores = scorer.clean_score(drawn.latents, drawn.text, at).tolist()
        for row, (request, score) in enumerate(zip(drawn.requests, scores, strict=True)):
            yield Candidate(request, drawn.latents[row : row + 1], score)


def best(candidates: Iterable[Candidate], keep: int) -> list[Candidate]:
    """The `keep` of highest score, highest first; of equals, the one that was asked for first."""
    return sorted(candidates, key=lambda one: -one.score)[:keep]
