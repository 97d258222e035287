"""Self-correction (section 4): an adapter's gradient, joined with classifier-free guidance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition
from dpt.errors import UserError
from dpt.sampling.guidance import Denoiser, classifier_free, guides_at, mix
from dpt.sampling.hooks import StepHook, StepInfo
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
) -> tuple[Denoiser, tuple[StepHook, ...]]:
    """What the loop calls, and what stands around its calls, for a batch of texts."""
    if correction is None or not correction.on:
        return _plain(backbone, text, negative, guidance), ()
    if scorer is None:
        raise UserError("a correction needs an adapter")
    corrected = SelfCorrected(backbone, text, negative, guidance, correction, scorer)
    return corrected, (corrected,)


def check_correction(correction: Correction, scheduler: Any) -> None:
    """Whether a scheduler can be corrected so."""
    if correction.on and correction.target != "input":
        check_movable(scheduler)


class SelfCorrected(StepHook):
    """A guided denoiser that corrects by eta g: the state before its call, the input within it, or the next state."""

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
        self.plain = _plain(backbone, text, negative, guidance)
        self.within = {"input": self._with_moved_input, "fused": self._and_slope}.get(correction.target)
        self.due = False
        self.seen = 0
        self.corrected = False
        self.shift: Tensor | None = None

    def before(self, z: Tensor, call: StepInfo) -> Tensor:
        if self.shift is not None and call.goes_on:
            z, self.shift = z + self.shift / call.scale, None
        self.due = self._is_due(call)
        self.corrected |= self.due
        if self.due and self.correction.target == "state":
            x = z * call.scale
            z = z + self._step(self.scorer.slope(x, call.t, self.text), x, call.t) / call.scale
        return z

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.within(x, t) if self.due and self.within else self.plain(x, t)

    def after(self, z: Tensor, call: StepInfo, x: Tensor, prediction: Tensor) -> Tensor:
        if self.corrected and not bool(z.isfinite().all()):
            raise UserError(
                f"the latents are no longer finite after step {call.index + 1} of {call.count}: "
                f"the correction factor {self.correction.factor:g} is too large"
            )
        return z

    def _is_due(self, call: StepInfo) -> bool:
        target = self.correction.target
        # Where the scheduler does not go on from the state, there is nothing that moving it would change.
        possible = target == "input" or (call.goes_on and not (target == "fused" and call.is_last))
        if not (possible and self.correction.interval.contains(self.backbone.noise.level(float(call.t)))):
            return False
        self.seen += 1
        return (self.seen - 1) % self.correction.every == 0

    def _with_moved_input(self, x: Tensor, t: Tensor) -> Tensor:
        moved = x + self._step(self.scorer.slope(x, t, self.text), x, t)
        if not self.guides(t):
            return self.backbone.predict(moved, t, self.text)
        both = Condition.stack([self.negative, self.text])
        negative, positive = self.backbone.predict(torch.cat([x, moved]), t, both).chunk(2)
        return mix(negative, positive, self.guidance.scale, self.guidance.rescale)

    def _and_slope(self, x: Tensor, t: Tensor) -> Tensor:
        slope = self.scorer.slope(x, t, self.text)
        if not self.guides(t):
            positive = self.backbone.finish(slope.paused)
            self.shift = self._step(slope, x, t, positive)
            return positive
        _, uncond = self.backbone.features(x, t, self.negative, self.scorer.adapter.config.unet_feature)
        negative, positive = self.backbone.finish(uncond.concat(slope.paused)).chunk(2)
        self.shift = self._step(slope, x, t, positive)
        return mix(negative, positive, self.guidance.scale, self.guidance.rescale)

    def _step(self, slope: ScoreGradient, x: Tensor, t: Tensor, prediction: Tensor | None = None) -> Tensor:
        """eta g, with g as `norm` has it: by how much the UNet's input is to move."""
        factor, g = self.correction.factor, slope.gradient
        if self.correction.norm == "none":
            return factor * g
        # A gradient of nothing stays nothing.
        direction = g / _norm(g).clamp_min(torch.finfo(g.dtype).tiny)
        if self.correction.norm == "unit":
            return factor * direction
        if self.correction.norm == "rms":
            return factor * math.sqrt(g[0].numel()) * direction
        prediction = self.backbone.finish(slope.paused) if prediction is None else prediction
        noise = self.backbone.noise.eps(x, prediction, t)
        return factor * _norm(noise) * direction


def _plain(backbone: Backbone, text: Condition, negative: Condition, guidance: Guidance) -> Denoiser:
    when = guides_at(guidance, backbone.noise)
    return classifier_free(backbone.predict, text, negative, guidance.scale, rescale=guidance.rescale, when=when)


def _norm(x: Tensor) -> Tensor:
    """(B,1,1,1)"""
    return x.flatten(1).norm(dim=1)[:, None, None, None]
