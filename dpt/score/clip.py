"""Similarity of images and texts, and image features, by any CLIP model in the transformers layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from dpt.backbone.device import resolve_device
from dpt.backbone.hf_model import open_hf_model
from dpt.detect.base import Image

BATCH_SIZE = 16

CHANNELS_LAST = "channels_last"
"""Passed explicitly: the processor would take an image three pixels high for a channels-first one."""


@dataclass(frozen=True)
class Clip:
    model: Any
    processor: Any
    tokenizer: Any
    identity: str

    @classmethod
    def open(cls, name: str, device: str | None = None) -> Clip:
        folder = open_hf_model(name, ("clip",), "CLIP")
        model = folder.load(CLIPModel).eval().to(resolve_device(device))
        return cls(model, folder.load(CLIPImageProcessorPil), folder.load(CLIPTokenizer), f"CLIP {folder.identity}")

    def cosine(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """Return the cosine similarity of each image with the text at the same index."""
        similarity = (self._images(images) * self._texts(texts)).sum(-1)
        return [float(value) for value in similarity]

    def nearest(self, images: Sequence[Image], texts: Sequence[str]) -> list[int]:
        """Return the index of the most similar text for each image."""
        return [int(i) for i in (self._images(images) @ self._texts(texts).T).argmax(-1)]

    def features(self, images: Sequence[Image]) -> NDArray[np.float64]:
        """Return the projected image features (n,width), not normalised."""
        with torch.no_grad():
            parts = [self._projected(images[start : start + BATCH_SIZE]) for start in range(0, len(images), BATCH_SIZE)]
        features: NDArray[np.float64] = torch.cat(parts).cpu().double().numpy()  # mps has no float64
        return features

    def count_truncated(self, texts: Sequence[str]) -> int:
        """Count the texts that are longer than the context and are truncated."""
        return sum(len(ids) > self._length for ids in self.tokenizer(list(texts)).input_ids)

    @property
    def _length(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    def _images(self, images: Sequence[Image]) -> Tensor:
        with torch.no_grad():
            return F.normalize(self._projected(images), dim=-1)

    def _projected(self, images: Sequence[Image]) -> Tensor:
        pixels = self.processor(list(images), return_tensors="pt", input_data_format=CHANNELS_LAST).pixel_values
        projected: Tensor = self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output
        return projected.float()

    def _texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
        ).to(self.model.device)
        with torch.no_grad():
            out = self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return F.normalize(out.pooler_output.float(), dim=-1)
