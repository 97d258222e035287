"""What is said of a picture: a verdict by the suite's rules, and how near the picture is to its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from dpt.claims.detections import DetectConfig, Detections
from dpt.claims.judge import counted_detections, judge
from dpt.detect.base import Detector, Image, check_finite, clip_boxes
from dpt.errors import UserError
from dpt.evaluation.bench.requests import ImageRequest, Key
from dpt.evaluation.bench.results import ImageResult, image_result

if TYPE_CHECKING:
    from dpt.score.clip import Clip
    from dpt.score.matching import MatchingScorer


JudgeImages = Callable[[str, Sequence[ImageRequest], Sequence[Image]], list[ImageResult]]
"""The lines of a method's pictures."""


class Scores(TypedDict, total=False):
    """By the name that a line has each under."""

    clip: float
    itm: float


@dataclass(frozen=True)
class ExtraScores:
    """What scores each picture against its prompt, beside the verdict."""

    clip: Clip | None = None
    itm: MatchingScorer | None = None

    @property
    def identities(self) -> dict[str, str]:
        return {name: one.identity for name, one in (("clip", self.clip), ("itm", self.itm)) if one}

    def scores(self, part: Sequence[ImageRequest], pictures: Sequence[Image]) -> list[Scores]:
        texts, found = [one.prompt.text for one in part], [Scores() for _ in part]
        if self.clip:
            for own, near in zip(found, self.clip.cosine(pictures, texts), strict=True):
                own["clip"] = round(near, 5)
        if self.itm:
            for own, matching in zip(found, self.itm.scores(pictures, texts), strict=True):
                own["itm"] = round(matching, 5)
        return found


NO_EXTRA_SCORES = ExtraScores()


@dataclass(frozen=True)
class ImageJudge:
    detector: Detector | None
    """None: nothing is judged."""
    asking: DetectConfig | None
    beside: ExtraScores = NO_EXTRA_SCORES

    @property
    def told(self) -> DetectConfig | None:
        """The rules of asking, where the detector is one that must be told."""
        return self.asking if self.detector is not None and self.detector.classes is None else None

    def __call__(self, method: str, part: Sequence[ImageRequest], pictures: Sequence[Image]) -> list[ImageResult]:
        seen = self._seen(method, part, pictures)
        scores = self.beside.scores(part, pictures)
        return [self._row(method, *one) for one in zip(part, seen, scores, strict=True)]

    def _seen(self, method: str, part: Sequence[ImageRequest], pictures: Sequence[Image]) -> list[Detections]:
        if self.detector is None:
            return [Detections()] * len(part)
        queries = None if self.told is None else [list(self.told.phrases(one.prompt)) for one in part]
        found = self.detector.detect(pictures, queries)
        for one, seen in zip(part, found, strict=True):
            check_finite(seen, self.detector.identity, f"{method}/{one.file}")
        if self.told is None:
            return found
        return [clip_boxes(seen, *picture.shape[1::-1]) for seen, picture in zip(found, pictures, strict=True)]

    def _row(self, method: str, one: ImageRequest, seen: Detections, scores: Scores) -> ImageResult:
        if self.detector is None:
            return image_result(method, one.prompt, one.index, one.seed, seen, None, **scores)
        verdict = judge(one.prompt, seen, self.told)
        shown = seen if self.told is None else counted_detections(one.prompt, seen, self.told)
        return image_result(method, one.prompt, one.index, one.seed, shown, verdict, **scores)


@dataclass(frozen=True)
class Rescore:
    """The lines as they are, with scores added to each."""

    known: Mapping[Key, ImageResult]
    beside: ExtraScores

    def __call__(self, method: str, part: Sequence[ImageRequest], pictures: Sequence[Image]) -> list[ImageResult]:
        for one in part:
            if one.key not in self.known:
                what = f"picture {one.index} of {one.prompt.id} by {method}"
                raise UserError(f"{what} has no line yet: end its run first")
        found = self.beside.scores(part, pictures)
        return [replace(self.known[one.key], **scores) for one, scores in zip(part, found, strict=True)]
