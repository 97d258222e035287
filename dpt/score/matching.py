"""The adapter's matching score of noisy latents or finished images with a text, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpt.adapter import Adapter
from dpt.adapter.transformer import check_fits
from dpt.backbone import Backbone, Condition
from dpt.backbone.base import PartialForward
from dpt.backbone.rng import generator_for
from dpt.detect.base import Image
from dpt.errors import UserError
from dpt.objectives.losses import match_score

CLEAN_NOISE_LEVELS = (0.1, 0.2, 0.3)
"""Noise levels at which a finished image is scored."""


@dataclass(frozen=True)
class ScoreGradient:
    score: Tensor  # (B,), s(z_t, y)
    gradient: Tensor  # (B,C,h,w), of each score with respect to its z_t, float32
    partial: PartialForward  # the forward pass up to the feature, for `Backbone.finish`


class Scorer:
    """The matching score s(z_t, y) and its gradient with respect to z_t. Restores train mode and requires_grad."""

    def __init__(self, backbone: Backbone, adapter: Adapter) -> None:
        check_fits(adapter.config, backbone)
        self.backbone, self.adapter = backbone, adapter.to(backbone.device)

    @torch.no_grad()
    def score(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Score the denoiser's input x (B,C,h,w) at timestep t, () or (B,). Returns (B,)."""
        with frozen(self.backbone.network, self.adapter):
            feature, _ = self.backbone.features(x, t, condition, self.adapter.config.unet_feature)
            return self._match_score(feature, t, condition)

    def score_gradient(self, x: Tensor, t: Tensor, condition: Condition) -> ScoreGradient:
        """Return the score and its gradient. The denoiser runs only up to the adapter's feature."""
        with frozen(self.backbone.network, self.adapter), torch.enable_grad():
            x = x.detach().float().requires_grad_()
            with self._attention_for_backward():
                feature, partial = self.backbone.features(x, t, condition, self.adapter.config.unet_feature)
            feature_leaf = feature.detach().requires_grad_()
            score = self._match_score(feature_leaf, t, condition)
            (feature_gradient,) = torch.autograd.grad(score.sum(), feature_leaf)
            scale = self._gradient_scale(feature_gradient)
            (gradient,) = torch.autograd.grad(feature, x, feature_gradient / scale)
        return ScoreGradient(score.detach(), gradient * scale, partial.detached())

    def clean_score(
        self, latents: Tensor, condition: Condition, noise_levels: Sequence[float] = CLEAN_NOISE_LEVELS
    ) -> Tensor:
        """Score finished latents (B,C,h,w): the mean over low noise levels, with fixed noise. Returns (B,)."""
        total = latents.new_zeros(len(latents))
        for level in noise_levels:
            t = torch.full((len(latents),), self.backbone.noise.timestep_at(level), device=latents.device)
            noise = torch.randn(latents.shape[1:], generator=generator_for(0, int(t[0]), "score noise"))
            noisy = self.backbone.noise.add_noise(latents, noise.to(latents.device).expand_as(latents), t)
            total += self.score(noisy, t, condition)
        return total / len(noise_levels)

    @contextmanager
    def _attention_for_backward(self) -> Iterator[None]:
        if self.backbone.prefers_math_attention:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield

    def _match_score(self, feature: Tensor, t: Tensor, condition: Condition) -> Tensor:
        vectors = self.adapter.match(feature, t.to(feature.device).expand(len(feature)))
        return match_score(vectors, condition.match)

    def _gradient_scale(self, feature_gradient: Tensor) -> Tensor | float:
        """Scale to divide by in the backward pass of a half-precision denoiser, where small gradients underflow."""
        if self.backbone.dtype == torch.float32:
            return 1.0
        largest = feature_gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        return torch.where(largest > 0, largest, 1.0)


@contextmanager
def frozen(*modules: Any) -> Iterator[None]:
    """Put modules in eval mode with requires_grad off, and restore both on exit."""
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
    """Scores images of any method with one backbone and adapter."""

    backbone: Backbone
    adapter: Adapter
    identity: str
    resize: bool = False
    """Resize images to the backbone's own size: they come from a model of another size."""

    @classmethod
    def open(
        cls, path: Path, model: str, flag: str, name: str = "", other_model: str | None = None, advice: str = ""
    ) -> MatchingScorer:
        """Open the adapter of the checkpoint at `path`, given by `flag`, on the model that it was trained on: `model`,
        which made the images, or `other_model`. A LoRA of the checkpoint is merged."""
        from dpt.backbone import open_backbone
        from dpt.checkpoints import open_checkpoint
        from dpt.embedded import model_location
        from dpt.weights import content_hash

        checkpoint = open_checkpoint(path)
        if checkpoint.adapter is None:
            raise UserError(f"{flag} {path} has no adapter")
        backbone = open_backbone(model_location(other_model or model), dtype="float32")
        record = checkpoint.adapter_record
        if record is not None and not backbone.is_model(record.base_hash):
            trained = f"on another model{f', {record.base}' if record.base else ''}"
            raise UserError(
                f"the adapter of {flag} {path} was trained {trained}, and not on {other_model or model}{advice}"
            )
        if lora := checkpoint.attach(backbone):
            lora.merge()
        tensors = {**checkpoint.adapter.state_dict(), **(checkpoint.lora.tensors if checkpoint.lora else {})}
        identity = " ".join(filter(None, ("adapter", name, content_hash(tensors)[:12])))
        if other_model is not None and (record is None or not record.base_hash):
            identity += f" on {backbone.model_hash[:12]}"  # the checkpoint does not tell
        return cls(backbone, checkpoint.adapter, identity, resize=other_model is not None)

    @torch.no_grad()
    def scores(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """Score images one at a time, so that a score does not depend on its batch."""
        scorer = Scorer(self.backbone, self.adapter)
        return [self._score(scorer, image, text) for image, text in zip(images, texts, strict=True)]

    def _score(self, scorer: Scorer, image: Image, text: str) -> float:
        if self.resize:
            height, width = self.backbone.default_image_size
            image = np.asarray(PILImage.fromarray(image).resize((width, height), PILImage.Resampling.BICUBIC))
        pixels = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        return float(scorer.clean_score(self.backbone.encode_images(pixels), self.backbone.encode_text([text])))
