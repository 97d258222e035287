"""Grounding DINO: the phrases are joined to one text, separated by full stops; a box has a score per token.

A phrase's score is the mean over its token positions. The model was trained on bare phrases, so the suite's query
template is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer, GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

from dpt.backbone.hf_model import HFModelFolder
from dpt.claims.detections import DetectConfig
from dpt.detect.base import Image
from dpt.detect.owl import corners
from dpt.errors import UserError
from dpt.score.clip import CHANNELS_LAST


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
