"""How well an adapter finds that a finished picture matches its text: what it corrects and chooses by, so no judge of
that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dpt.adapter import Adapter
from dpt.backbone import Backbone
from dpt.evaluation.detectors.base import Image
from dpt.sampling.scorer import Scorer


@dataclass(frozen=True)
class Matching:
    """One reader for the pictures of all methods, whatever model drew them."""

    backbone: Backbone
    adapter: Adapter
    identity: str

    @torch.no_grad()
    def scores(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """Read off the picture as it was saved, one by one: nothing of a score depends on what is beside it."""
        scorer = Scorer(self.backbone, self.adapter)
        return [self._score(scorer, image, text) for image, text in zip(images, texts, strict=True)]

    def _score(self, scorer: Scorer, image: Image, text: str) -> float:
        pixels = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        return float(scorer.clean_score(self.backbone.encode_images(pixels), self.backbone.encode_text([text])))
