"""Detectors that find whatever they are told to look for, through transformers: any checkpoint of a known type.

Each box that such a model proposes belongs to the one phrase that fits it best, the first of equals. Phrases are kept
apart as a whole, so that a car is never read out of a carrot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Protocol

import torch
from torch import Tensor

from dpt.backbone.device import resolve_device
from dpt.backbone.hf_model import HFModelFolder, open_hf_model
from dpt.claims.boxes import Box
from dpt.claims.detections import DetectConfig, Detection, Detections
from dpt.claims.words import with_article
from dpt.detect.base import Image, clip_boxes, nms
from dpt.detect.grounding_dino import GroundingDino
from dpt.detect.owl import Owl
from dpt.errors import UserError
from dpt.score.clip import Clip


class ZeroShotModel(Protocol):
    def answer(self, image: Image, phrases: Sequence[str], asking: DetectConfig) -> tuple[Tensor, Tensor]:
        """Scores (boxes,phrases) from 0 to 1, and corners (boxes,4) in pixels of the image."""
        ...


OPENERS: dict[str, Callable[[HFModelFolder, torch.device], ZeroShotModel]] = {
    "owlv2": Owl.load,
    "owlvit": Owl.load,
    "grounding-dino": GroundingDino.load,
}

USUAL = {
    "owlv2": "google/owlv2-base-patch16-ensemble",
    "owlvit": "google/owlvit-base-patch32",
    "grounding-dino": "IDEA-Research/grounding-dino-base",
}
"""What the bare name of a type stands for."""


@dataclass(frozen=True)
class ZeroShotDetector:
    """A `Detector`. What it counts, and how it asks, is the suite's to say."""

    model: ZeroShotModel
    name: str
    asking: DetectConfig
    colours: Clip | None = None
    """Names the colour of each box, out of the suite's colours; without it no colour is told."""

    @property
    def identity(self) -> str:
        told = f"{self.name} {self.asking.identity}"
        return told if self.colours is None else f"{told}; colours by {self.colours.identity}"

    @property
    def classes(self) -> None:
        return None

    def detect(self, images: Sequence[Image], queries: Sequence[Sequence[str]] | None = None) -> list[Detections]:
        if queries is None:
            raise ValueError("a zero-shot detector must be told what to look for")
        return [self._look(image, list(asked)) for image, asked in zip(images, queries, strict=True)]

    def _look(self, image: Image, phrases: list[str]) -> Detections:
        if not phrases:
            return Detections()
        scores, corners = self.model.answer(image, phrases, self.asking)
        # Before any comparison, in which what is no number would silently count as too little.
        if not (torch.isfinite(scores).all() and torch.isfinite(corners).all()):
            raise UserError(f"{self.name} answered with scores or boxes that are not numbers")
        best, which = scores.max(-1)
        found = [
            Detection(phrases[label], Box(*box), score)
            for score, label, box in zip(best.tolist(), which.tolist(), corners.tolist(), strict=True)
            if self.asking.counts(score)
        ]
        height, width = image.shape[:2]
        seen = clip_boxes(Detections(tuple(found)), width, height)
        kept = nms(seen.objects, self.asking.nms)
        return replace(seen, objects=tuple(self._coloured(image, one) for one in kept))

    def _coloured(self, image: Image, one: Detection) -> Detection:
        if self.colours is None:
            return one
        box, names = one.box, self.asking.colours
        crop = image[floor(box.y0) : ceil(box.y1), floor(box.x0) : ceil(box.x1)]
        texts = [f"a photo of {with_article(f'{name} {one.label}')}" for name in names]
        return replace(one, colour=names[self.colours.nearest([crop], texts)[0]])


def open_zero_shot(
    name: str, asking: DetectConfig, colours: Clip | None = None, device: str | None = None
) -> ZeroShotDetector:
    """`name`: a folder, a hub id, or the bare name of a type."""
    folder = open_hf_model(USUAL.get(name, name), tuple(OPENERS), "zero-shot detector")
    model = OPENERS[folder.model_type](folder, resolve_device(device))
    return ZeroShotDetector(model, folder.identity, asking, colours)
