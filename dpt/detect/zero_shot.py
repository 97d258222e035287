"""Open-vocabulary detectors from transformers: any checkpoint of a known model type.

Each proposed box gets the label of its highest-scoring phrase; ties go to the first. Scores are per phrase, so "car"
never matches a part of "carrot".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dpt.backbone.device import resolve_device
from dpt.backbone.hf_model import HFModelFolder, open_hf_model
from dpt.claims.detections import DetectConfig, Detections
from dpt.detect.base import Image, detector_identity, read_boxes
from dpt.detect.grounding_dino import GroundingDino
from dpt.detect.owl import Owl
from dpt.score.clip import Clip


class ZeroShotModel(Protocol):
    def predict(self, image: Image, phrases: Sequence[str], config: DetectConfig) -> tuple[Tensor, Tensor]:
        """Return scores (boxes,phrases) in [0, 1], and corners (boxes,4) in pixels of the image."""
        ...


MODEL_TYPES: dict[str, Callable[[HFModelFolder, torch.device], ZeroShotModel]] = {
    "owlv2": Owl.load,
    "owlvit": Owl.load,
    "grounding-dino": GroundingDino.load,
}

DEFAULT_CHECKPOINTS = {
    "owlv2": "google/owlv2-base-patch16-ensemble",
    "owlvit": "google/owlvit-base-patch32",
    "grounding-dino": "IDEA-Research/grounding-dino-base",
}
"""The checkpoint to open for the bare name of a model type."""


@dataclass(frozen=True)
class ZeroShotDetector:
    """A `Detector` that takes queries."""

    model: ZeroShotModel
    name: str
    config: DetectConfig
    colours: Clip | None = None
    """Classifies the colour of each box among the config's colours; with None, detections have no colour."""

    @property
    def identity(self) -> str:
        return detector_identity(self.name, self.config, self.colours)

    @property
    def classes(self) -> None:
        return None

    def detect(self, images: Sequence[Image], queries: Sequence[Sequence[str]] | None = None) -> list[Detections]:
        if queries is None:
            raise ValueError("an open-vocabulary detector needs queries")
        return [self._detect(image, list(phrases)) for image, phrases in zip(images, queries, strict=True)]

    def _detect(self, image: Image, phrases: list[str]) -> Detections:
        if not phrases:
            return Detections()
        scores, corners = self.model.predict(image, phrases, self.config)
        return read_boxes(image, scores, corners, phrases, self.name, self.config, self.colours)


def open_zero_shot(
    name: str, config: DetectConfig, colours: Clip | None = None, device: str | None = None
) -> ZeroShotDetector:
    """`name`: a folder, a hub id, or a model type."""
    folder = open_hf_model(DEFAULT_CHECKPOINTS.get(name, name), tuple(MODEL_TYPES), "zero-shot detector")
    model = MODEL_TYPES[folder.model_type](folder, resolve_device(device))
    return ZeroShotDetector(model, folder.identity, config, colours)
