"""A correction as the published code computes it, in our words: a whole forward pass for the score, all queries of the
adapter, and a backward pass; then guidance's own two passes. Where it moves the state, its pictures are ours."""

from __future__ import annotations

import torch
from torch import Tensor

from dpt.objectives.losses import match_score
from dpt.sampling.guidance import StepHook, StepInfo
from dpt.sampling.self_correction import SelfCorrection


class PublishedState(StepHook):
    """In place of a `SelfCorrection` whose target is the state: the same formula by a schedule that saves nothing."""

    def __init__(self, ours: SelfCorrection) -> None:
        self.ours = ours

    def before(self, z: Tensor, step: StepInfo) -> Tensor:
        backbone, scorer, text = self.ours.backbone, self.ours.scorer, self.ours.text
        with torch.enable_grad():
            x = (z * step.scale).detach().requires_grad_()
            feature, at = backbone.features(x, step.t, text, scorer.adapter.config.unet_feature)
            backbone.finish(at)  # which is thrown away
            decoded = scorer.adapter.decode(feature, step.t.to(feature.device).expand(len(x)))
            scorer.adapter.grounding_head(decoded)
            score = match_score(scorer.adapter.matching_head(decoded), text.match)
            (gradient,) = torch.autograd.grad(score.sum(), x)
        return z + self.ours.correction.factor * gradient / step.scale

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.ours.uncorrected(x, t)
