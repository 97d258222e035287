"""Hooks around each sampling step, and a trace of scores and predicted x0."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from dpt.backbone import Backbone, Condition
from dpt.score.matching import Scorer


@dataclass(frozen=True)
class StepInfo:
    """One call of the denoiser within the sampling loop."""

    index: int
    count: int
    t: Tensor
    scale: Tensor
    """(1,): the denoiser's input is the latents times this."""
    continues: bool
    """Whether the scheduler continues from the latents it is given now, not from ones it stored."""

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1


class StepHook:
    """Called before and after each call of the denoiser, and may change the latents. This one changes nothing."""

    @property
    def stops(self) -> bool:
        """Whether sampling ends after this step."""
        return False

    def before(self, z: Tensor, step: StepInfo) -> Tensor:
        return z

    def after(self, z: Tensor, step: StepInfo, x: Tensor, prediction: Tensor) -> Tensor:
        """z: the scheduler's next latents; x: the denoiser's input; prediction: its output."""
        return z


@dataclass(frozen=True)
class TraceStep:
    index: int
    t: float
    scores: Tensor | None  # (B,), of the UNet's input at this call, after any correction of the latents
    x0_pred: Tensor | None  # (B,C,h,w), only at the steps chosen


class Trace(StepHook):
    """Records the matching score at each call, and the predicted x0 at some."""

    def __init__(
        self, backbone: Backbone, text: Condition, scorer: Scorer | None, x0_pred_at: Collection[int] = ()
    ) -> None:
        self.backbone, self.text, self.scorer, self.x0_pred_at = backbone, text, scorer, frozenset(x0_pred_at)
        self.steps: list[TraceStep] = []

    @property
    def scores(self) -> list[list[float]]:
        """One row per call, one score per image."""
        return [step.scores.tolist() for step in self.steps if step.scores is not None]

    def after(self, z: Tensor, step: StepInfo, x: Tensor, prediction: Tensor) -> Tensor:
        scores = None if self.scorer is None else self.scorer.score(x, step.t, self.text).cpu()
        shown = step.index in self.x0_pred_at
        x0_pred = self.backbone.noise.x0(x, prediction, step.t).cpu() if shown else None
        self.steps.append(TraceStep(step.index, float(step.t), scores, x0_pred))
        return z
