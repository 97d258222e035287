"""Judges images by the suite's rules and scores how well they match their prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from dpt.claims.detections import DetectConfig, Detections
from dpt.claims.judge import counted_detections, judge
from dpt.detect.base import Detector, Image, check_finite, clip_boxes
from dpt.errors import UserError
from dpt.evaluation.bench.columns import MethodResults
from dpt.evaluation.bench.requests import ImageRequest
from dpt.evaluation.bench.results import ImageResult, image_result

if TYPE_CHECKING:
    from dpt.score.clip import Clip
    from dpt.score.matching import MatchingScorer
    from dpt.score.preference import PreferenceModel


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
