"""Open-vocabulary detectors from transformers: OWL-ViT, OWLv2 and Grounding DINO.

Each proposed box gets the label of its highest-scoring phrase; ties go to the first. Scores are per phrase, so "car"
never matches a part of "carrot". OWL's queries are sentences. Grounding DINO was trained on bare phrases: the suite's
query template is not used, and a phrase's score is the mean over its token positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    BertTokenizer,
    CLIPTokenizer,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
)

from dpt.backbone.device import resolve_device
from dpt.backbone.opening import HFModelFolder, open_hf_model
from dpt.claims.judge import DetectConfig, Detections
from dpt.detect.base import Image, detector_identity, read_boxes
from dpt.errors import UserError
from dpt.score.clip import CHANNELS_LAST, Clip


@dataclass(frozen=True)
class Owl:
    model: Any
    processor: Any
    tokenizer: Any
    padded: bool
    """Whether images are padded to a square (OWLv2) or stretched to one (OWL-ViT)."""

    @classmethod
    def load(cls, folder: HFModelFolder, device: torch.device) -> Owl:
        version_2 = folder.model_type == "owlv2"
        model = folder.load(Owlv2ForObjectDetection if version_2 else OwlViTForObjectDetection).eval().to(device)
        processor = folder.load(Owlv2ImageProcessorPil if version_2 else OwlViTImageProcessorPil)
        return cls(model, processor, folder.load(CLIPTokenizer), padded=version_2)

    def predict(self, image: Image, phrases: Sequence[str], config: DetectConfig) -> tuple[Tensor, Tensor]:
        tokens = self._tokens([config.sentence(phrase) for phrase in phrases])
        pixels = self.processor(image, return_tensors="pt", input_data_format=CHANNELS_LAST).pixel_values
        with torch.no_grad():
            out = self.model(pixel_values=pixels.to(self.model.device), **tokens)
        height, width = image.shape[:2]
        sides = [max(height, width)] * 2 if self.padded else [width, height]
        return out.logits[0].float().sigmoid().cpu(), corners(out.pred_boxes[0].float().cpu(), sides)

    def _tokens(self, sentences: Sequence[str]) -> dict[str, Tensor]:
        max_length = self.model.config.text_config.max_position_embeddings
        for sentence, ids in zip(sentences, self.tokenizer(list(sentences)).input_ids, strict=True):
            if len(ids) > max_length:
                raise UserError(f"{sentence!r} has {len(ids)} tokens; the detector takes at most {max_length}")
        tokens = self.tokenizer(list(sentences), padding="max_length", max_length=max_length, return_tensors="pt")
        return {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}


def corners(boxes: Tensor, sides: Sequence[int]) -> Tensor:
    """Convert (n,4) boxes from centre and extent, relative to the sides (width, height), to corners in pixels."""
    centre, extent = boxes[:, :2], boxes[:, 2:]
    relative = torch.cat([centre - extent / 2, centre + extent / 2], -1)
    return relative * torch.tensor([*sides, *sides], dtype=relative.dtype)


@dataclass(frozen=True)
class GroundingDino:
    model: Any
    processor: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: HFModelFolder, device: torch.device) -> GroundingDino:
        model = folder.load(GroundingDinoForObjectDetection).eval().to(device)
        return cls(model, folder.load(GroundingDinoImageProcessorPil), folder.load(BertTokenizer))

    def predict(self, image: Image, phrases: Sequence[str], config: DetectConfig) -> tuple[Tensor, Tensor]:
        ids, spans = self.tokenize(phrases)
        tokens = torch.tensor([ids], device=self.model.device)
        pixels = self.processor(image, return_tensors="pt", input_data_format=CHANNELS_LAST).to(self.model.device)
        with torch.no_grad():
            out = self.model(
                pixel_values=pixels.pixel_values,
                pixel_mask=pixels.pixel_mask,
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                token_type_ids=torch.zeros_like(tokens),
            )
        by_token = out.logits[0].float().sigmoid().cpu()
        scores = torch.stack([by_token[:, start:end].mean(-1) for start, end in spans], -1)
        height, width = image.shape[:2]
        return scores, corners(out.pred_boxes[0].float().cpu(), [width, height])

    def tokenize(self, phrases: Sequence[str]) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of the joined text, and the span of each phrase in them."""
        stop = self.tokenizer.convert_tokens_to_ids(".")
        ids: list[int] = [self.tokenizer.cls_token_id]
        spans: list[tuple[int, int]] = []
        for phrase in phrases:
            phrase_ids = self.tokenizer(phrase.lower(), add_special_tokens=False).input_ids
            spans.append((len(ids), len(ids) + len(phrase_ids)))
            ids += [*phrase_ids, stop]
        ids.append(self.tokenizer.sep_token_id)
        max_length = self.model.config.max_text_len
        if len(ids) > max_length:
            raise UserError(f"{len(phrases)} phrases have {len(ids)} tokens; the detector takes at most {max_length}")
        return ids, spans


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
