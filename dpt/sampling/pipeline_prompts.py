"""Prompts, or embeddings given in their place, as the conditions of one call of `DPTPipeline`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from diffusers.utils import scale_lora_layers, unscale_lora_layers
from torch import Tensor, nn

from dpt.backbone import Backbone, Condition
from dpt.errors import UserError

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
