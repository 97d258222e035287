"""The callback of a diffusers pipeline as a step hook: it may change latents, prompt embeddings and guidance scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition
from dpt.errors import UserError
from dpt.sampling.guidance import Denoiser
from dpt.sampling.hooks import StepHook, StepInfo
from dpt.sampling.options import Correction, Guidance
from dpt.sampling.self_correction import guided
from dpt.score.matching import Scorer

OnStepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], Mapping[str, Tensor] | None]
"""callback(pipeline, step, timestep, tensors): what it returns replaces the tensors of these names."""


@dataclass
class GuidedCall:
    """The denoiser of one call of the pipeline; its conditions and guidance may change between steps."""

    backbone: Backbone
    text: Condition
    negative: Condition
    guidance: Guidance
    correction: Correction
    scorer: Scorer | None

    def __post_init__(self) -> None:
        self.denoiser: Denoiser
        self.hooks: tuple[StepHook, ...]
        self._build()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.denoiser(x, t)

    def change(self, text: Condition, negative: Condition, guidance: Guidance) -> None:
        if self.correction.on:
            raise UserError(
                "a callback cannot change the prompt or the guidance scale during self-correction: "
                "pass correction_factor=0"
            )
        self.text, self.negative, self.guidance = text, negative, guidance
        self._build()

    def _build(self) -> None:
        self.denoiser, self.hooks = guided(
            self.backbone, self.text, self.negative, self.guidance, self.correction, self.scorer
        )

    @property
    def is_guided(self) -> bool:
        """Whether the negative prompt is predicted beside the prompt."""
        scale = self.guidance.true_cfg_scale if self.backbone.guidance_is_embedded else self.guidance.scale
        return scale != 1

    def tensors(self) -> dict[str, Tensor]:
        """The prompt as stock pipelines give it to callbacks: with guidance, the negative rows come first."""
        both = Condition.stack([self.negative, self.text]) if self.is_guided else self.text
        pooled = {} if both.pooled is None else {"pooled_prompt_embeds": both.pooled, "add_text_embeds": both.pooled}
        time_ids = {} if both.time_ids is None else {"add_time_ids": both.time_ids}
        return {"prompt_embeds": both.states, "negative_prompt_embeds": self.negative.states, **pooled, **time_ids}

    def with_states(self, states: Tensor) -> tuple[Condition, Condition]:
        """Text and negative condition with these token states: of both, or of the text alone."""
        if len(states) == len(self.text):
            return replace(self.text, states=states), self.negative
        if len(states) != 2 * len(self.text):
            rows = f"{len(self.text)} or {2 * len(self.text)}"
            raise UserError(f"the callback returned prompt_embeds with {len(states)} rows instead of {rows}")
        negative, text = states.chunk(2)
        return replace(self.text, states=text), replace(self.negative, states=negative)


class StepEndCallback(StepHook):
    """Calls `callback` after each step, as diffusers does, and applies what it returns."""

    def __init__(
        self,
        pipeline: Any,
        callback: OnStepEnd,
        inputs: Sequence[str],
        call: GuidedCall,
        guidance_at: Callable[[float], Guidance],
    ) -> None:
        """`guidance_at` turns the pipeline's current guidance scale into a `Guidance`."""
        self.pipeline, self.callback, self.inputs = pipeline, callback, tuple(inputs)
        self.call, self.guidance_at = call, guidance_at
        if unknown := [name for name in self.inputs if name != "latents" and name not in call.tensors()]:
            known = ", ".join(["latents", *call.tensors()])
            raise UserError(f"callback_on_step_end_tensor_inputs: there is no tensor {unknown[0]!r}; there are {known}")

    def after(self, z: Tensor, step: StepInfo, x: Tensor, prediction: Tensor) -> Tensor:
        tensors = {"latents": z, **self.call.tensors()}
        given = {name: tensors[name] for name in self.inputs}
        returned = self.callback(self.pipeline, step.index, step.t, dict(given)) or {}
        text, negative = self.call.text, self.call.negative
        states = returned.get("prompt_embeds")
        guidance = self.guidance_at(self.pipeline.guidance_scale)
        if states is not None and states is not given.get("prompt_embeds"):
            text, negative = self.call.with_states(states)
        if text is not self.call.text or guidance != self.call.guidance:
            self.call.change(text, negative, guidance)
        latents = returned.get("latents", z)
        return latents if torch.is_tensor(latents) else z

    @property
    def stops(self) -> bool:
        """Whether the callback set the pipeline's `_interrupt`."""
        return bool(getattr(self.pipeline, "_interrupt", False))
