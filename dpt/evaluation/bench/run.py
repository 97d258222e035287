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
from dpt.data.images import to_pil
from dpt.detect.base import Image
from dpt.evaluation.bench import results as rows
from dpt.evaluation.bench.judging import JudgeImages
from dpt.evaluation.bench.requests import ALONE, ImageRequest, Shard, open_image, save_image
from dpt.sampling.draw import Request, Settings, best, draw, draw_latents, scored
from dpt.score.matching import Scorer

TOGETHER = 16
"""Pictures drawn in one batch. Which ones is fixed, since what is beside a picture changes how it is rounded: so the
same lines come out however often a run is killed, and wherever its parts are drawn."""

APART = 1_000_000
"""Between the numbers of two candidates for one picture: more than a prompt ever has pictures."""


class ImageSource(Protocol):
    """Where the pictures of one method come from."""

    def lacks(self, one: ImageRequest) -> bool:
        """Whether a picture that has its line must be made again nevertheless."""
        ...

    def pictures(self, part: Sequence[ImageRequest]) -> list[Image]: ...


@dataclass(frozen=True)
class GeneratedImages:
    """From the model; each is kept in the folder."""

    backbone: Backbone
    settings: Settings
    folder: Path
    adapter: Adapter | None = None
    candidates: int = 1
    """How many are drawn for each that is kept, the first being the one that is drawn where there is no choice."""

    def lacks(self, one: ImageRequest) -> bool:
        return not (self.folder / one.file).exists()

    def pictures(self, part: Sequence[ImageRequest]) -> list[Image]:
        images = self._drawn(part) if self.candidates == 1 else self._chosen(part)
        pictures = [to_pil(image) for image in images]
        for one, picture in zip(part, pictures, strict=True):
            save_image(picture, one, self.folder)
        return [np.asarray(picture) for picture in pictures]

    def _drawn(self, part: Sequence[ImageRequest]) -> Iterator[Tensor]:
        requests = [Request(one.prompt.text, one.seed, one.index) for one in part]
        return draw(self.backbone, requests, self.settings, adapter=self.adapter, batch_size=TOGETHER, exact=False)

    def _chosen(self, part: Sequence[ImageRequest]) -> Iterator[Tensor]:
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
class StoredImages:
    """From the folder, as they were drawn."""

    folder: Path

    def lacks(self, one: ImageRequest) -> bool:
        return False

    def pictures(self, part: Sequence[ImageRequest]) -> list[Image]:
        return [np.asarray(open_image(self.folder / one.file)) for one in part]


def run_benchmark(
    method: str,
    asked: Sequence[ImageRequest],
    source: ImageSource,
    look: JudgeImages,
    out: Path,
    on_done: Callable[[int], None] = lambda _: None,
    shard: Shard = ALONE,
) -> None:
    """Lines into out/METHOD.jsonl; of several processes, each its share into a part that is brought together later."""
    lines = out / f"{method}.jsonl"
    own = shard.file(lines)
    rows.repair(own)
    done = {row.key for file in {lines, own} if file.exists() for row in rows.read_results(file)}
    for start in range(0, len(asked), TOGETHER):
        if not shard.holds(start // TOGETHER):
            continue
        part = asked[start : start + TOGETHER]
        if any(one.key not in done or source.lacks(one) for one in part):
            judged = look(method, part, source.pictures(part))
            rows.append_results(own, (row for row in judged if row.key not in done))
        on_done(len(part))
