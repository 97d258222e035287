"""Self-correction: the gradient of the adapter's matching score, combined with classifier-free guidance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition
from dpt.errors import UserError
from dpt.sampling.guidance import (
    Denoiser,
    Predict,
    StepHook,
    StepInfo,
    check_finite,
    classifier_free,
    combine,
    embed_guidance,
    explain_denoiser,
    guides_at,
    is_plausible,
)
from dpt.sampling.options import Correction, Guidance
from dpt.sampling.schedulers import check_movable
from dpt.score.matching import ScoreGradient, Scorer


def guided(
    backbone: Backbone,
    text: Condition,
    negative: Condition,
    guidance: Guidance,
    correction: Correction | None = None,
    scorer: Scorer | None = None,
    predict_negative: Predict | None = None,
) -> tuple[Denoiser, tuple[StepHook, ...]]:
    """The denoiser and the step hooks for a batch of prompts, with guidance and correction."""
    text, negative, guidance = embed_guidance(backbone, text, negative, guidance)
    if correction is None or not correction.on:
        return _uncorrected(backbone, text, negative, guidance, predict_negative), ()
    if predict_negative is not None:
        raise UserError("self-correction cannot be combined with a negative LoRA")
    if scorer is None:
        raise UserError("a correction needs an adapter")
    corrected = SelfCorrection(backbone, text, negative, guidance, correction, scorer)
    return corrected, (corrected,)


def check_correction(correction: Correction, scheduler: Any) -> None:
    """Refuse schedulers whose latents a correction cannot move."""
    if correction.on and correction.target != "input":
        check_movable(scheduler)


class SelfCorrection(StepHook):
    """A guided denoiser that moves the latents, or the denoiser's input, by eta times the score gradient."""

    def __init__(
        self,
        backbone: Backbone,
        text: Condition,
        negative: Condition,
        guidance: Guidance,
        correction: Correction,
        scorer: Scorer,
    ) -> None:
        self.backbone, self.text, self.negative = backbone, text, negative
        self.guidance, self.correction, self.scorer = guidance, correction, scorer
        self.guides = guides_at(guidance, backbone.noise)
        self.uncorrected = _uncorrected(backbone, text, negative, guidance)
        corrected = {"input": self._predict_from_moved_input, "fused": self._predict_and_store_shift}
        self.corrected = corrected.get(correction.target, self.uncorrected)
        self.due = False
        """Whether the current step is corrected."""
        self.steps_in_interval = 0
        self.any_corrected = False
        self.shift: Tensor | None = None
        """With the target fused: by how much the next input moves."""
        self.first: tuple[Tensor, Tensor] | None = None
        """The input and timestep of the first call, for diagnosis: the input is noise."""

    def before(self, z: Tensor, step: StepInfo) -> Tensor:
        if self.first is None:
            self.first = (z * step.scale, step.t)
        if self.shift is not None and step.continues:
            z, self.shift = z + self.shift / step.scale, None
        self.due = self._is_due(step)
        self.any_corrected |= self.due
        if self.due and self.correction.target == "state":
            x = z * step.scale
            z = z + self.shift_at(x, step.t) / step.scale
        return z

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.corrected(x, t) if self.due else self.uncorrected(x, t)

    def after(self, z: Tensor, step: StepInfo, x: Tensor, prediction: Tensor) -> Tensor:
        if self.any_corrected:
            moved = z if self.shift is None else z + self.shift
            check_finite(moved, step, self._explain)
        return z

    def _explain(self) -> str:
        """Why the latents are not finite: the model, the guidance scale, the adapter's gradient, or the factor."""
        assert self.first is not None
        x, t = self.first
        if not is_plausible(self.uncorrected(x, t)):
            return explain_denoiser(self.backbone, self.text, x, t, self.guidance)
        if not bool(self.scorer.score_gradient(x, t, self.text).gradient.isfinite().all()):
            return "the gradient of the adapter's score is not finite: the adapter's weights are broken"
        return f"the correction factor {self.correction.factor:g} is too large"

    def _is_due(self, step: StepInfo) -> bool:
        target = self.correction.target
        # Where the scheduler does not continue from the latents it is given, moving them has no effect.
        possible = target == "input" or (step.continues and not (target == "fused" and step.is_last))
        if not (possible and self.correction.interval.contains(self.backbone.noise.level(float(step.t)))):
            return False
        self.steps_in_interval += 1
        return (self.steps_in_interval - 1) % self.correction.every == 0

    def _predict_from_moved_input(self, x: Tensor, t: Tensor) -> Tensor:
        moved = x + self.shift_at(x, t)
        if not self.guides(t):
            return self.backbone.predict(moved, t, self.text)
        both = Condition.stack([self.negative, self.text])
        uncond, cond = self.backbone.predict(torch.cat([x, moved]), t, both).chunk(2)
        return combine(uncond, cond, self.guidance.scale, self.guidance.rescale)

    def _predict_and_store_shift(self, x: Tensor, t: Tensor) -> Tensor:
        score = self.scorer.score_gradient(x, t, self.text)
        if not self.guides(t):
            cond = self.backbone.finish(score.partial)
            self.shift = self._shift(score, x, t, cond)
            return cond
        _, partial = self.backbone.features(x, t, self.negative, self.scorer.adapter.config.unet_feature)
        uncond, cond = self.backbone.finish(partial.concat(score.partial)).chunk(2)
        self.shift = self._shift(score, x, t, cond)
        return combine(uncond, cond, self.guidance.scale, self.guidance.rescale)

    def shift_at(self, x: Tensor, t: Tensor) -> Tensor:
        """By how much the denoiser's input x moves at timestep t."""
        return self._shift(self.scorer.score_gradient(x, t, self.text), x, t)

    def _shift(self, score: ScoreGradient, x: Tensor, t: Tensor, prediction: Tensor | None = None) -> Tensor:
        """eta g, with g normalised as `norm` says: by how much the denoiser's input moves."""
        factor, g = self.correction.factor, score.gradient
        if self.correction.norm == "none":
            return factor * g
        # A zero gradient stays zero.
        direction = g / _norm(g).clamp_min(torch.finfo(g.dtype).tiny)
        if self.correction.norm == "unit":
            return factor * direction
        if self.correction.norm == "rms":
            return factor * math.sqrt(g[0].numel()) * direction
        prediction = self.backbone.finish(score.partial) if prediction is None else prediction
        noise = self.backbone.noise.eps(x, prediction, t)
        return factor * _norm(noise) * direction


def _uncorrected(
    backbone: Backbone,
    text: Condition,
    negative: Condition,
    guidance: Guidance,
    predict_negative: Predict | None = None,
) -> Denoiser:
    return classifier_free(
        backbone.predict,
        text,
        negative,
        guidance.scale,
        rescale=guidance.rescale,
        when=guides_at(guidance, backbone.noise),
        predict_negative=predict_negative,
    )


def _norm(x: Tensor) -> Tensor:
    """(B,1,1,1)"""
    return x.flatten(1).norm(dim=1)[:, None, None, None]
