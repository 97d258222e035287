"""Generates or loads the images of a suite and judges them; a killed run resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from dpt.data.images import is_whole_image
from dpt.detect.base import Image
from dpt.evaluation.bench.cost import measured
from dpt.evaluation.bench.judging import JudgeImages
from dpt.evaluation.bench.requests import (
    SINGLE_PROCESS,
    ImageRequest,
    Shard,
    open_image,
    save_image,
)
from dpt.evaluation.bench.results import ImageResult, append_results, read_lines, repair, replace_results, result_line
from dpt.methods.base import Method
from dpt.sampling.draw import Request

BATCH = 16
"""Images per batch. Rounding depends on the batch, so batches are fixed: results do not depend on kills or on the
number of processes."""


class ImageSource(Protocol):
    """Source of a method's images."""

    def is_missing(self, request: ImageRequest) -> bool:
        """Whether the image must be generated again although it has a result."""
        ...

    def images(self, requests: Sequence[ImageRequest]) -> list[Image]: ...


@dataclass(frozen=True)
class GeneratedImages:
    """Generates images by a method and saves them in the folder."""

    method: Method
    folder: Path
    cost: Path | None = None
    """Also write what each batch cost to this file."""

    def is_missing(self, request: ImageRequest) -> bool:
        return not is_whole_image(self.folder / request.file)

    def images(self, requests: Sequence[ImageRequest]) -> list[Image]:
        with measured(self.cost, requests):
            pictures = list(self.method.make([Request(r.prompt.text, r.seed, r.index) for r in requests]))
        for request, picture in zip(requests, pictures, strict=True):
            save_image(picture, request, self.folder)
        return [np.asarray(picture) for picture in pictures]


@dataclass(frozen=True)
class StoredImages:
    """Loads images from the folder of an earlier run."""

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
    """Write out/METHOD.jsonl. With several processes, each writes a part for `merge_shards`."""
    lines = out / f"{method}.jsonl"
    output = shard.file(lines)
    repair(output)
    known = {line.key: hash(line.text) for file in {lines, output} if file.exists() for line in read_lines(file)}
    for start in range(0, len(requests), BATCH):
        if not shard.holds(start // BATCH):
            continue
        batch = requests[start : start + BATCH]
        if any(request.key not in known or source.is_missing(request) for request in batch):
            results = judge(method, batch, source.images(batch))
            append_results(output, [result for result in results if result.key not in known])
            # An image generated again on another machine may differ, and so may its verdict.
            changed = [result for result in results if known.get(result.key, _hash(result)) != _hash(result)]
            if shard == SINGLE_PROCESS:
                replace_results(output, {result.key: result for result in changed})
            else:
                append_results(output, changed)
        on_done(len(batch))


def _hash(result: ImageResult) -> int:
    return hash(result_line(result).encode())
