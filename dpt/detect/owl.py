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
from dpt.score.clip import LAST


@dataclass(frozen=True)
class Owl:
    model: Any
    processor: Any
    tokenizer: Any
    padded: bool
    """Whether images are padded to a square (OWLv2) or stretched to one (OWL-ViT)."""

    @classmethod
    def load(cls, folder: HFModelFolder, device: torch.device) -> Owl:
        second = folder.model_type == "owlv2"
        model = folder.load(Owlv2ForObjectDetection if second else OwlViTForObjectDetection).eval().to(device)
        processor = folder.load(Owlv2ImageProcessorPil if second else OwlViTImageProcessorPil)
        return cls(model, processor, folder.load(CLIPTokenizer), second)

    def answer(self, image: Image, phrases: Sequence[str], config: DetectConfig) -> tuple[Tensor, Tensor]:
        tokens = self._tokens([config.sentence(phrase) for phrase in phrases])
        pixels = self.processor(image, return_tensors="pt", input_data_format=LAST).pixel_values
        with torch.no_grad():
            out = self.model(pixel_values=pixels.to(self.model.device), **tokens)
        height, width = image.shape[:2]
        sides = [max(height, width)] * 2 if self.padded else [width, height]
        return out.logits[0].float().sigmoid().cpu(), corners(out.pred_boxes[0].float().cpu(), sides)

    def _tokens(self, sentences: Sequence[str]) -> dict[str, Tensor]:
        most = self.model.config.text_config.max_position_embeddings
        for sentence, ids in zip(sentences, self.tokenizer(list(sentences)).input_ids, strict=True):
            if len(ids) > most:
                raise UserError(f"the detector reads {most} tokens, too few for {sentence!r}, which has {len(ids)}")
        tokens = self.tokenizer(list(sentences), padding="max_length", max_length=most, return_tensors="pt")
        return {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}


def corners(boxes: Tensor, sides: Sequence[int]) -> Tensor:
    """(n,4) from centre and extent, relative to the sides (width, height), to corners in pixels."""
    centre, extent = boxes[:, :2], boxes[:, 2:]
    relative = torch.cat([centre - extent / 2, centre + extent / 2], -1)
    return relative * torch.tensor([*sides, *sides], dtype=relative.dtype)
