"""What a call of `DPTPipeline` takes: prompts or embeddings as conditions, and a callback as a step hook."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.utils import scale_lora_layers, unscale_lora_layers
from torch import Tensor, nn

from dpt.backbone import Backbone, Condition
from dpt.errors import UserError
from dpt.sampling.guidance import Denoiser, StepHook, StepInfo
from dpt.sampling.options import Correction, Guidance
from dpt.sampling.self_correction import guided
from dpt.score.matching import Scorer

Prompts = str | Sequence[str] | None


@dataclass(frozen=True)
class Embeddings:
    """What a caller may give instead of a prompt, (B,L,D) and (B,P)."""

    states: Tensor | None = None
    pooled: Tensor | None = None

    def condition(self, backbone: Backbone, name: str) -> Condition:
        """As a condition; `name` is the argument of the states. Without `pooled` it cannot be matched."""
        assert self.states is not None
        like = backbone.encode_text([""])
        if self.states.ndim != 3 or self.states.shape[-1] != like.states.shape[-1]:
            shape = f"(B, tokens, {like.states.shape[-1]})"
            raise UserError(f"{name} has the shape {tuple(self.states.shape)}, and this model needs {shape}")
        if like.pooled is not None and self.pooled is None:
            other = name.replace("prompt_embeds", "pooled_prompt_embeds")
            raise UserError(f"this model also needs {other} beside {name}: encode_prompt returns both")
        rows = [0] * len(self.states)
        match = like.match[rows] if self.pooled is None else self.pooled
        return replace(like[rows], states=self.states, match=match, pooled=self.pooled)


def conditions(
    pipeline: Any,
    prompt: Prompts,
    negative_prompt: Prompts,
    embeddings: Embeddings,
    negative_embeddings: Embeddings,
    images_per_prompt: int,
    clip_skip: int | None,
) -> tuple[Condition, Condition, list[str]]:
    """The condition and the negative one, a row per image, and the negative prompts."""
    if images_per_prompt < 1:
        raise UserError(f"num_images_per_prompt must be at least 1, not {images_per_prompt}")
    if embeddings.states is None:
        prompts = _prompts("prompt", prompt)
        if not prompts:
            raise UserError("there is no prompt")
        text = _encode(pipeline, prompts, clip_skip)
    else:
        if prompt is not None:
            raise UserError("give prompt or prompt_embeds, not both")
        text = embeddings.condition(pipeline.backbone, "prompt_embeds")
    negatives: list[str] = []
    if negative_embeddings.states is None:
        negatives = _prompts("negative_prompt", negative_prompt)
        if negative_prompt is None or isinstance(negative_prompt, str):
            negatives = (negatives or [""]) * len(text)
        if len(negatives) != len(text):
            raise UserError(f"there are {len(negatives)} negative prompts for {len(text)} prompts")
        negative = _encode(pipeline, negatives, clip_skip)
    else:
        negative = negative_embeddings.condition(pipeline.backbone, "negative_prompt_embeds")
        if len(negative) != len(text):
            raise UserError(f"negative_prompt_embeds has {len(negative)} rows for {len(text)} prompts")
    if negative.states.shape[1] != text.states.shape[1]:
        tokens = f"{negative.states.shape[1]} tokens, and prompt_embeds has {text.states.shape[1]}"
        raise UserError(f"negative_prompt_embeds has {tokens}: encode both with the same encode_prompt")
    rows = [row for row in range(len(text)) for _ in range(images_per_prompt)]
    return text[rows], negative[rows], negatives


def _prompts(name: str, prompts: Prompts) -> list[str]:
    if prompts is None:
        return []
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if wrong := [prompt for prompt in listed if not isinstance(prompt, str)]:
        raise UserError(f"{name} must be a string or a list of strings, and it holds a {type(wrong[0]).__name__}")
    return listed


def _encode(pipeline: Any, prompts: list[str], clip_skip: int | None) -> Condition:
    backbone = pipeline.backbone
    if hasattr(pipeline, "maybe_convert_prompt") and hasattr(pipeline, "tokenizer"):  # textual inversion
        prompts = [pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer) for prompt in prompts]
    condition: Condition = backbone.encode_text(prompts)
    if clip_skip is None:
        return condition
    skipped: Condition = pipeline.skip_layers(condition, prompts, clip_skip)
    return skipped


ATTENTION_ARGUMENTS = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")


def attention_scale(arguments: Mapping[str, Any]) -> tuple[float | None, dict[str, Any]]:
    """The LoRA scale in these arguments of a stock pipeline, and what else in them is set."""
    rest = {name: value for name, value in arguments.items() if value is not None}
    scale: float | None = None
    for name in ATTENTION_ARGUMENTS:
        if set(rest.get(name, ())) == {"scale"}:
            scale = float(rest.pop(name)["scale"])
        elif name in rest and not rest[name]:
            del rest[name]
    return scale, rest


@contextmanager
def lora_scaled(components: Mapping[str, Any], scale: float | None) -> Iterator[None]:
    """Inside, the LoRAs that were loaded by `load_lora_weights` are scaled, in text encoders and network."""
    names = ("unet", "transformer", "text_encoder", "text_encoder_2")
    modules = [part for name in names if isinstance(part := components.get(name), nn.Module)]
    if scale is None:
        yield
        return
    for module in modules:
        scale_lora_layers(module, scale)
    try:
        yield
    finally:
        for module in modules:
            unscale_lora_layers(module, scale)


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
