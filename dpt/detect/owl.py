"""OWL-ViT and OWLv2: each query is a sentence, and each box has a score for every query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPTokenizer,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
)

from dpt.backbone.hf_model import HFModelFolder
from dpt.claims.detections import DetectConfig
from dpt.detect.base import Image
from dpt.errors import UserError
from dpt.score.clip import CHANNELS_LAST


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
