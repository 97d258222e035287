"""Draw a suite by one method, or open what was drawn, and judge every picture, going on where a kill left it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from dpt.adapter import Adapter
from dpt.backbone import Backbone
from dpt.evaluation.bench import rows
from dpt.evaluation.bench.asked import Asked
from dpt.evaluation.bench.looking import Look
from dpt.evaluation.bench.pictures import keep, open_picture
from dpt.evaluation.bench.shards import ALONE, Shard
from dpt.evaluation.detectors.base import Image
from dpt.sampling.best import best, scored
from dpt.sampling.draw import Request, Settings, draw, draw_latents
from dpt.sampling.pictures import to_picture
from dpt.sampling.scorer import Scorer

TOGETHER = 16
"""Pictures drawn in one batch. Which ones is fixed, since what is beside a picture changes how it is rounded: so the
same lines come out however often a run is killed, and wherever its parts are drawn."""
APART = 1_000_000
"""Between the numbers of two candidates for one picture: more than a prompt ever has pictures."""


class Source(Protocol):
    """Where the pictures of one method come from."""

    def lacks(self, one: Asked) -> bool:
        """Whether a picture that has its line must be made again nevertheless."""
        ...

    def pictures(self, part: Sequence[Asked]) -> list[Image]: ...


@dataclass(frozen=True)
class Drawn:
    """From the model; each is kept in the folder."""

    backbone: Backbone
    settings: Settings
    folder: Path
    adapter: Adapter | None = None
    candidates: int = 1
    """How many are drawn for each that is kept, the first being the one that is drawn where there is no choice."""

    def lacks(self, one: Asked) -> bool:
        return not (self.folder / one.file).exists()

    def pictures(self, part: Sequence[Asked]) -> list[Image]:
        images = self._drawn(part) if self.candidates == 1 else self._chosen(part)
        pictures = [to_picture(image) for image in images]
        for one, picture in zip(part, pictures, strict=True):
            keep(picture, one, self.folder)
        return [np.asarray(picture) for picture in pictures]

    def _drawn(self, part: Sequence[Asked]) -> Iterator[Tensor]:
        requests = [Request(one.prompt.text, one.seed, one.index) for one in part]
        return draw(
            self.backbone, requests, self.settings, adapter=self.adapter, batch_size=TOGETHER, exact=False
        )

    def _chosen(self, part: Sequence[Asked]) -> Iterator[Tensor]:
        assert self.adapter is not None, "a method that chooses has an adapter"
        requests = [
            Request(one.prompt.text, one.seed, one.index + APART * number)
            for one in part
            for number in range(self.candidates)
        ]
        batches = draw_latents(
            self.backbone, requests, self.settings, adapter=self.adapter, batch_size=TOGETHER, exact=False
        )
        candidates = list(scored(batches, Scorer(self.backbone, self.adapter)))
        for start in range(0, len(candidates), self.candidates):
            (chosen,) = best(candidates[start : start + self.candidates], 1)
            yield chosen.decode(self.backbone)


@dataclass(frozen=True)
class Stored:
    """From the folder, as they were drawn."""

    folder: Path

    def lacks(self, one: Asked) -> bool:
        return False

    def pictures(self, part: Sequence[Asked]) -> list[Image]:
        return [np.asarray(open_picture(self.folder / one.file)) for one in part]


def run(
    method: str,
    asked: Sequence[Asked],
    source: Source,
    look: Look,
    out: Path,
    on_done: Callable[[int], None] = lambda _: None,
    shard: Shard = ALONE,
) -> None:
    """Lines into out/METHOD.jsonl; of several processes, each its share into a part that is brought together later."""
    lines = out / f"{method}.jsonl"
    own = shard.file(lines)
    rows.mend(own)
    done = {row.key for file in {lines, own} if file.exists() for row in rows.read(file)}
    for start in range(0, len(asked), TOGETHER):
        if not shard.holds(start // TOGETHER):
            continue
        part = asked[start : start + TOGETHER]
        if any(one.key not in done or source.lacks(one) for one in part):
            judged = look(method, part, source.pictures(part))
            rows.append(own, (row for row in judged if row.key not in done))
        on_done(len(part))
