"""Make or open the pictures of a suite and judge each of them, resuming where a kill stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from dpt.detect.base import Image
from dpt.evaluation.bench.judging import JudgeImages
from dpt.evaluation.bench.requests import (
    SINGLE_PROCESS,
    ImageRequest,
    Shard,
    is_whole_image,
    open_image,
    save_image,
)
from dpt.evaluation.bench.results import ImageResult, append_results, read_lines, repair, replace_results, result_line
from dpt.methods.base import Method
from dpt.sampling.draw import Request

BATCH = 16
"""Pictures made together. The grouping is fixed, since the other pictures of a batch change how one is rounded: so the
lines are the same however often a run is killed and however many processes share it."""


class ImageSource(Protocol):
    """Where the pictures of one method come from."""

    def is_missing(self, request: ImageRequest) -> bool:
        """Whether the picture must be made again although it has a line."""
        ...

    def images(self, requests: Sequence[ImageRequest]) -> list[Image]: ...


@dataclass(frozen=True)
class GeneratedImages:
    """Made by a method and saved in the folder."""

    method: Method
    folder: Path

    def is_missing(self, request: ImageRequest) -> bool:
        return not is_whole_image(self.folder / request.file)

    def images(self, requests: Sequence[ImageRequest]) -> list[Image]:
        made = list(
            self.method.make([Request(request.prompt.text, request.seed, request.index) for request in requests])
        )
        for request, picture in zip(requests, made, strict=True):
            save_image(picture, request, self.folder)
        return [np.asarray(picture) for picture in made]


@dataclass(frozen=True)
class StoredImages:
    """From the folder of an earlier run."""

    folder: Path

    def is_missing(self, request: ImageRequest) -> bool:
        return False

    def images(self, requests: Sequence[ImageRequest]) -> list[Image]:
        return [np.asarray(open_image(self.folder / request.file)) for request in requests]


def run_benchmark(
    method: str,
    requests: Sequence[ImageRequest],
    source: ImageSource,
    judge: JudgeImages,
    out: Path,
    on_done: Callable[[int], None] = lambda _: None,
    shard: Shard = SINGLE_PROCESS,
) -> None:
    """Write out/METHOD.jsonl; one of several processes writes its share to a part that `merge_shards` merges."""
    lines = out / f"{method}.jsonl"
    own = shard.file(lines)
    repair(own)
    known = {line.key: hash(line.text) for file in {lines, own} if file.exists() for line in read_lines(file)}
    for start in range(0, len(requests), BATCH):
        if not shard.holds(start // BATCH):
            continue
        batch = requests[start : start + BATCH]
        if any(request.key not in known or source.is_missing(request) for request in batch):
            results = judge(method, batch, source.images(batch))
            append_results(own, [result for result in results if result.key not in known])
            # A picture that was made again on another machine may differ, and so may its verdict.
            changed = [result for result in results if known.get(result.key, _hash(result)) != _hash(result)]
            if shard == SINGLE_PROCESS:
                replace_results(own, {result.key: result for result in changed})
            else:
                append_results(own, changed)
        on_done(len(batch))


def _hash(result: ImageResult) -> int:
    return hash(result_line(result).encode())
