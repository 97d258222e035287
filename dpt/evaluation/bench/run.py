"""The images of a benchmark: their seeds and files; generated or loaded, judged, scored; a killed run resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict

import numpy as np
import PIL.Image

from dpt.backbone.rng import derived_seed
from dpt.claims.facts import Prompt
from dpt.claims.judge import DetectConfig, Detections, counted_detections, judge
from dpt.data.images import is_whole_image, save_png
from dpt.detect.base import Detector, Image, check_finite, clip_boxes
from dpt.errors import UserError
from dpt.evaluation.bench.columns import Cost, MethodResults, measured
from dpt.evaluation.bench.results import (
    ImageResult,
    Key,
    append_results,
    image_result,
    open_image,
    read_lines,
    repair,
    replace_results,
    result_line,
)
from dpt.evaluation.suites.base import Layout, Suite, image_file
from dpt.files import atomic_file
from dpt.methods.base import Method
from dpt.sampling.draw import Request
from dpt.untrusted import MOST_IMAGES

if TYPE_CHECKING:
    from dpt.score.clip import Clip
    from dpt.score.matching import MatchingScorer
    from dpt.score.preference import PreferenceModel


@dataclass(frozen=True)
class ImageRequest:
    """Image `index` of a prompt. Its noise is a function of (suite, prompt, index): the same for every method."""

    prompt: Prompt
    index: int
    suite: str
    layout: Layout = "flat"

    @property
    def key(self) -> Key:
        return self.prompt.id, self.index

    @property
    def seed(self) -> int:
        return derived_seed(0, 0, f"{self.suite}/{self.prompt.id}")

    @property
    def file(self) -> Path:
        return image_file(self.layout, self.prompt.id, self.index)


def all_requests(suite: Suite, per_prompt: int) -> list[ImageRequest]:
    """The first image of every prompt, then the second of every prompt, so that a run with more images continues."""
    if len(suite.prompts) * per_prompt > MOST_IMAGES:
        total = f"{len(suite.prompts):,} prompts with {per_prompt:,} images each"
        raise UserError(f"{total} are more than {MOST_IMAGES:,} images: lower --per_prompt or --prompts")
    return [
        ImageRequest(prompt, index, suite.id, suite.layout) for index in range(per_prompt) for prompt in suite.prompts
    ]


@dataclass(frozen=True)
class Shard:
    """The batches of this process, of several that share a run."""

    rank: int = 0
    count: int = 1

    def holds(self, batch: int) -> bool:
        return batch % self.count == self.rank

    def file(self, lines: Path) -> Path:
        """The file that this process writes: a part, or the results file of a single process."""
        return lines if self.count == 1 else lines.with_name(f"{lines.stem}.part-{self.rank}.jsonl")


SINGLE_PROCESS = Shard()


def drop_older_lines(lines: Path, requests: Sequence[ImageRequest], folder: Path) -> bool:
    """Drop the results of images that were drawn again since. Returns whether there were any."""
    if not lines.exists():
        return False
    written = lines.stat().st_mtime
    files = {request.key: folder / request.file for request in requests}
    changed = {key for key, file in files.items() if file.exists() and file.stat().st_mtime > written}
    if changed:
        kept = [line.text for line in read_lines(lines) if line.key not in changed]
        with atomic_file(lines) as work:
            work.write_bytes(b"".join(kept))
    return bool(changed)


def merge_shards(lines: Path, requests: Sequence[ImageRequest], sort: bool = False) -> None:
    """Merge the parts of all processes, also of killed ones, into a single file in the order of requests.

    `sort`: restore that order even if there is no part.
    """
    parts = sorted(lines.parent.glob(f"{lines.stem}.part-*.jsonl"))
    if not parts and not sort:
        return
    texts: dict[Key, bytes] = {}
    for file in (*([lines] if lines.exists() else []), *parts):
        repair(file)
        # Parts override the file: they hold the newer line of an image that was drawn again.
        texts |= {line.key: line.text for line in read_lines(file)}
    ordered = [texts.pop(request.key) for request in requests if request.key in texts]
    with atomic_file(lines) as work:
        work.write_bytes(b"".join((*ordered, *texts.values())))  # a run of more images per prompt left the others
    for file in parts:
        file.unlink()


def save_image(picture: PIL.Image.Image, request: ImageRequest, folder: Path) -> None:
    file = folder / request.file
    file.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture, file)
    if request.layout == "folders":
        (folder / request.prompt.id / "metadata.jsonl").write_text(f"{request.prompt.source}\n")


JudgeImages = Callable[[str, Sequence[ImageRequest], Sequence[Image]], list[ImageResult]]
"""(method, requests, images) -> a result per image."""


class Scores(TypedDict, total=False):
    """Keys are fields of `ImageResult`."""

    clip: float
    itm: float
    hps: float


@dataclass(frozen=True)
class ExtraScores:
    """Models that score an image with its prompt, in addition to the verdict."""

    clip: Clip | None = None
    itm: MatchingScorer | None = None
    hps: PreferenceModel | None = None

    @property
    def identities(self) -> dict[str, str]:
        scorers = (("clip", self.clip), ("itm", self.itm), ("hps", self.hps))
        return {name: scorer.identity for name, scorer in scorers if scorer}

    def scores(self, requests: Sequence[ImageRequest], images: Sequence[Image]) -> list[Scores]:
        texts, scores = [request.prompt.text for request in requests], [Scores() for _ in requests]
        if self.clip:
            for image_scores, cosine in zip(scores, self.clip.cosine(images, texts), strict=True):
                image_scores["clip"] = round(cosine, 5)
        if self.itm:
            for image_scores, matching in zip(scores, self.itm.scores(images, texts), strict=True):
                image_scores["itm"] = round(matching, 5)
        if self.hps:
            for image_scores, preference in zip(scores, self.hps.scores(images, texts), strict=True):
                image_scores["hps"] = round(preference, 4)
        return scores


NO_EXTRA_SCORES = ExtraScores()


@dataclass(frozen=True)
class ImageJudge:
    detector: Detector | None
    """None if images are not judged."""
    detect_config: DetectConfig | None
    extra_scores: ExtraScores = NO_EXTRA_SCORES

    @property
    def query_config(self) -> DetectConfig | None:
        """The config of an open-vocabulary detector; None for a closed-set detector."""
        return self.detect_config if self.detector is not None and self.detector.classes is None else None

    def __call__(self, method: str, requests: Sequence[ImageRequest], images: Sequence[Image]) -> list[ImageResult]:
        detections = self._detect(method, requests, images)
        scores = self.extra_scores.scores(requests, images)
        return [self._result(method, *inputs) for inputs in zip(requests, detections, scores, strict=True)]

    def _detect(self, method: str, requests: Sequence[ImageRequest], images: Sequence[Image]) -> list[Detections]:
        if self.detector is None:
            return [Detections()] * len(requests)
        config = self.query_config
        queries = None if config is None else [list(config.phrases(request.prompt)) for request in requests]
        detections = self.detector.detect(images, queries)
        for request, image_detections in zip(requests, detections, strict=True):
            check_finite(image_detections, self.detector.identity, f"{method}/{request.file}")
        if config is None:
            return detections
        return [clip_boxes(result, *image.shape[1::-1]) for result, image in zip(detections, images, strict=True)]

    def _result(self, method: str, request: ImageRequest, detections: Detections, scores: Scores) -> ImageResult:
        prompt, config = request.prompt, self.query_config
        verdict = None if self.detector is None else judge(prompt, detections, config)
        if config is not None:
            detections = counted_detections(prompt, detections, config)
        return image_result(method, prompt, request.index, request.seed, detections, verdict, **scores)


@dataclass(frozen=True)
class Rescore:
    """Adds scores to existing results."""

    results: MethodResults
    extra_scores: ExtraScores

    def __call__(self, method: str, requests: Sequence[ImageRequest], images: Sequence[Image]) -> list[ImageResult]:
        lines = self.results.line_of
        for request in requests:
            if request.key not in lines:
                what = f"image {request.index} of {request.prompt.id} by {method}"
                raise UserError(f"{what} has no line yet: finish `dpt bench run` first")
        scores = self.extra_scores.scores(requests, images)
        return [
            replace(self.results.result(lines[request.key]), **image_scores)
            for request, image_scores in zip(requests, scores, strict=True)
        ]


def drawing(request: ImageRequest) -> Request:
    """The request without its claims, as a method takes it."""
    return Request(request.prompt.text, request.seed, request.index)


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
    before: Cost | None = None
    """Of images that the method starts from instead of generating them."""

    def is_missing(self, request: ImageRequest) -> bool:
        return not is_whole_image(self.folder / request.file)

    def images(self, requests: Sequence[ImageRequest]) -> list[Image]:
        with measured(self.cost, requests, self.before):
            pictures = list(self.method.make([drawing(request) for request in requests]))
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
