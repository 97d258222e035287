"""The adapter's matching score of latents or finished pictures with a text, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpt.adapter import Adapter
from dpt.adapter.config import check_fits
from dpt.backbone import Backbone, Condition
from dpt.backbone.base import PartialForward
from dpt.backbone.rng import generator_for
from dpt.detect.base import Image
from dpt.objectives.matching import match_score

CLEAN_AT = (0.1, 0.2, 0.3)
"""The noise, as shares of the noise levels, at which a finished picture is scored."""


@dataclass(frozen=True)
class ScoreGradient:
    score: Tensor  # (B,), s(z_t, y)
    gradient: Tensor  # (B,C,h,w), of each score by its own z_t, float32
    paused: PartialForward  # the forward pass that was read, with which `Backbone.finish` can go on


class Scorer:
    """s(z_t, y) of section 1.3, differentiable by z_t only. Train mode and requires_grad of modules are restored."""

    def __init__(self, backbone: Backbone, adapter: Adapter) -> None:
        check_fits(adapter.config, backbone)
        self.backbone, self.adapter = backbone, adapter.to(backbone.device)

    @torch.no_grad()
    def score(self, x: Tensor, t: Tensor, text: Condition) -> Tensor:
        """(B,) for what the UNet is given, x (B,C,h,w), at t, () or (B,)."""
        with frozen(self.backbone.network, self.adapter):
            feature, _ = self.backbone.features(x, t, text, self.adapter.config.unet_feature)
            return self._read(feature, t, text)

    def slope(self, x: Tensor, t: Tensor, text: Condition) -> ScoreGradient:
        """The same score, and its gradient; nothing of the UNet past the feature is computed."""
        with frozen(self.backbone.network, self.adapter), torch.enable_grad():
            x = x.detach().float().requires_grad_()
            with self._quickly_differentiated():
                feature, paused = self.backbone.features(x, t, text, self.adapter.config.unet_feature)
            free = feature.detach().requires_grad_()
            score = self._read(free, t, text)
            (upper,) = torch.autograd.grad(score.sum(), free)
            strength = self._strength(upper)
            (gradient,) = torch.autograd.grad(feature, x, upper / strength)
        return ScoreGradient(score.detach(), gradient * strength, paused.detached())

    def clean_score(self, latents: Tensor, text: Condition, at: Sequence[float] = CLEAN_AT) -> Tensor:
        """(B,) for finished latents (B,C,h,w): the mean over a few small amounts of a noise that is always the same."""
        total = latents.new_zeros(len(latents))
        for share in at:
            t = torch.full((len(latents),), self.backbone.noise.timestep_at(share), device=latents.device)
            noise = torch.randn(latents.shape[1:], generator=generator_for(0, int(t[0]), "score noise"))
            noisy = self.backbone.noise.add_noise(latents, noise.to(latents.device).expand_as(latents), t)
            total += self.score(noisy, t, text)
        return total / len(at)

    @contextmanager
    def _quickly_differentiated(self) -> Iterator[None]:
        if self.backbone.prefers_math_attention:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield

    def _read(self, feature: Tensor, t: Tensor, text: Condition) -> Tensor:
        vectors = self.adapter.match(feature, t.to(feature.device).expand(len(feature)))
        return match_score(vectors, text.match)

    def _strength(self, upper: Tensor) -> Tensor | float:
        """What to divide by on the way back through a UNet of a half format, where small numbers would be lost."""
        if self.backbone.dtype == torch.float32:
            return 1.0
        largest = upper.abs().amax(dim=(1, 2, 3), keepdim=True)
        return torch.where(largest > 0, largest, 1.0)


@contextmanager
def frozen(*modules: Any) -> Iterator[None]:
    """Inside, modules evaluate and their parameters ask for no gradient; afterwards they are as they were."""
    parts = [part for module in modules for part in module.modules()]
    training = [part for part in parts if part.training]
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    try:
        for part in training:
            part.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for part in training:
            part.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class MatchingScorer:
    """One scorer for the pictures of all methods, whatever model made them."""

    backbone: Backbone
    adapter: Adapter
    identity: str

    @torch.no_grad()
    def scores(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """From the saved pictures, one at a time, so that a score does not depend on its batch."""
        scorer = Scorer(self.backbone, self.adapter)
        return [self._score(scorer, image, text) for image, text in zip(images, texts, strict=True)]

    def _score(self, scorer: Scorer, image: Image, text: str) -> float:
        pixels = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        return float(scorer.clean_score(self.backbone.encode_images(pixels), self.backbone.encode_text([text])))
