"""Detects given nouns with their attributes for the correction loop, each region once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dpt.claims.detections import DetectConfig, Detection, Detections
from dpt.claims.facts import Noun
from dpt.claims.layout import merge_passes
from dpt.detect.base import Detector, Image, check_finite, clip_boxes

ATTRIBUTE = "attribute"

QUERIES = DetectConfig("image of {a} {noun}", 0.20, thresholds=((ATTRIBUTE, 0.45),), nms=0.15)
"""For open-vocabulary detectors: as the published benchmark queries OWLv2."""


@dataclass(frozen=True)
class NounDetector:
    """Detects nouns by any detector.

    A closed-set detector reads everything it knows. An open-vocabulary detector is queried twice: for attributed
    phrases and for bare nouns.
    """

    detector: Detector
    config: DetectConfig = QUERIES

    def __call__(self, image: Image, nouns: Sequence[Noun]) -> Detections:
        if self.detector.classes is not None:
            (detections,) = self.detector.detect([image])
            check_finite(detections, self.detector.identity, "the picture")
            return clip_boxes(detections, image.shape[1], image.shape[0])
        attributed = [noun for noun in nouns if noun.colour or noun.size]
        bare = list(dict.fromkeys(Noun(shape=noun.shape) for noun in nouns))
        found = [d for d in self._pass(image, attributed) if self.config.counts(d.confidence, ATTRIBUTE)]
        return Detections(merge_passes(found, self._pass(image, bare)))

    def _pass(self, image: Image, nouns: Sequence[Noun]) -> list[Detection]:
        phrases = {self.config.phrase(noun): noun for noun in nouns}
        if not phrases:
            return []
        (detections,) = self.detector.detect([image], [list(phrases)])
        check_finite(detections, self.detector.identity, "the picture")
        detections = clip_boxes(detections, image.shape[1], image.shape[0])
        return [
            replace(d, label=noun.shape or "", colour=noun.colour or d.colour, size=noun.size)
            for d in detections.objects
            for noun in [phrases[d.label]]
        ]
