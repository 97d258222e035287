"""The sampler with the interface of a diffusers pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpt.adapter import Adapter
from dpt.backbone import Backbone, open_backbone
from dpt.checkpoints import open_checkpoint
from dpt.data.images import to_pil
from dpt.errors import UserError
from dpt.generation_defaults import GenerationDefaults, generation_defaults
from dpt.sampling.draw import SamplingSettings, calls_per_picture
from dpt.sampling.guidance import unused_guidance
from dpt.sampling.hooks import StepHook, StepInfo
from dpt.sampling.loop import denoise
from dpt.sampling.options import Interval, recommended_correction, resolve_correction
from dpt.sampling.schedulers import MODELS_OWN, make_scheduler
from dpt.sampling.self_correction import guided
from dpt.score.matching import Scorer

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

Generators = torch.Generator | Sequence[torch.Generator]

OnStepEnd = Callable[["DPTPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]


@dataclass(frozen=True)
class DPTPipelineOutput:
    images: Any
    """As output_type says: a list of PIL images; (B,H,W,3) or (B,3,H,W) in [0,1]; or latents (B,C,h,w)."""


class DPTPipeline:
    """Text to images. Without an adapter and its flags, the images are those of StableDiffusionPipeline."""

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter | None = None,
        scheduler: str = MODELS_OWN,
        defaults: GenerationDefaults | None = None,
    ) -> None:
        """`defaults` are the model's own if not given."""
        self.backbone, self.adapter, self.scheduler = backbone, adapter, scheduler
        self.defaults = generation_defaults(backbone.folder.path) if defaults is None else defaults

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        checkpoint: str | Path | None = None,
        scheduler: str = MODELS_OWN,
        revision: str | None = None,
        device: str | torch.device | None = None,
        torch_dtype: str | torch.dtype | None = None,
        allow_other_base: bool = False,
    ) -> DPTPipeline:
        """A model in the diffusers layout, and a checkpoint of any format that `open_checkpoint` reads."""
        backbone = open_backbone(model, revision=revision, device=device, dtype=torch_dtype)
        if checkpoint is None:
            return cls(backbone, None, scheduler)
        opened = open_checkpoint(Path(checkpoint))
        if lora := opened.attach(backbone, allow_other_base):
            lora.merge()
        return cls(backbone, opened.adapter, scheduler, generation_defaults(backbone.folder.path, opened.path))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        num_images_per_prompt: int = 1,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: OnStepEnd | None = None,
        correction_factor: float | None = None,
        correction_target: str | None = None,
        correction_norm: str | None = None,
        correction_start: float | None = None,
        correction_end: float | None = None,
        correction_every: int | None = None,
        true_cfg_scale: float = 1.0,
    ) -> DPTPipelineOutput:
        """Sample images. `latents` are standard normal noise (B,C,h,w), drawn from `generator` if not given.

        Guidance scale and negative prompt default to the model's and checkpoint's `generation_defaults.json`. Without
        a correction_factor the correction that the checkpoint recommends is used, if any; 0 turns it off.
        """
        recommended = None if self.adapter is None else self.defaults.correction
        correction = resolve_correction(
            recommended_correction(recommended, num_inference_steps),
            correction_factor,
            correction_target,
            correction_norm,
            correction_start,
            correction_end,
            correction_every,
        )
        settings = SamplingSettings(
            num_inference_steps,
            self.defaults.guidance_scale if guidance_scale is None else guidance_scale,
            self.scheduler,
            height,
            width,
            Interval(guidance_start, guidance_end),
            guidance_rescale,
            correction,
            true_cfg_scale,
        )
        negative_prompt = self.defaults.negative_prompt if negative_prompt is None else negative_prompt
        prompts, negatives = _repeated(prompt, negative_prompt, num_images_per_prompt)
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"the output type is one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}")
        for sentence in unused_guidance(self.backbone, settings.guidance, negatives):
            warnings.warn(sentence, stacklevel=2)
        calls_per_picture(self.backbone, settings)
        scorer = Scorer(self.backbone, self.adapter) if settings.correction.on and self.adapter is not None else None
        text, negative = self.backbone.encode_text(prompts), self.backbone.encode_text(negatives)
        denoiser, hooks = guided(self.backbone, text, negative, settings.guidance, settings.correction, scorer)
        if callback_on_step_end is not None:
            hooks = (*hooks, _StepEnd(self, callback_on_step_end))
        latents = denoise(
            denoiser,
            make_scheduler(self.scheduler, self.backbone.scheduler_config),
            self._noise(latents, generator, len(prompts), self.backbone.latent_size(height, width)),
            num_inference_steps,
            generators=generator,
            hooks=hooks,
        )
        return DPTPipelineOutput(self._convert(latents, output_type))

    def _noise(self, latents: Tensor | None, generator: Generators | None, count: int, size: tuple[int, int]) -> Tensor:
        shape = (count, self.backbone.latent_channels, *size)
        if latents is not None:
            if latents.shape != shape:
                raise UserError(f"the latents have the shape {tuple(latents.shape)}, and it should be {shape}")
            return latents.to(self.backbone.device, torch.float32)
        if generator is None or isinstance(generator, torch.Generator):
            return _randn(shape, generator).to(self.backbone.device)
        if len(generator) != count:
            raise UserError(f"there are {len(generator)} generators for {count} images")
        return torch.stack([_randn(shape[1:], own) for own in generator]).to(self.backbone.device)

    def _convert(self, latents: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return latents
        images = self.backbone.decode_latents(latents).cpu()
        if output_type == "pil":
            return [to_pil(image) for image in images]
        values = (images / 2 + 0.5).clamp(0, 1)
        return values if output_type == "pt" else values.permute(0, 2, 3, 1).numpy()


class _StepEnd(StepHook):
    """A callback as in diffusers: it gets the latents after a step and may return others."""

    def __init__(self, pipeline: DPTPipeline, callback: OnStepEnd) -> None:
        self.pipeline, self.callback = pipeline, callback

    def after(self, z: Tensor, step: StepInfo, x: Tensor, prediction: Tensor) -> Tensor:
        changed = self.callback(self.pipeline, step.index, step.t, {"latents": z}) or {}
        return changed.get("latents", z)


def _randn(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    return torch.randn(*shape, generator=generator, device=None if generator is None else generator.device)


def _repeated(
    prompt: str | Sequence[str], negative: str | Sequence[str], per_prompt: int
) -> tuple[list[str], list[str]]:
    """A prompt and a negative prompt for each image."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
    if not prompts:
        raise UserError("there is no prompt")
    if len(negatives) != len(prompts):
        raise UserError(f"there are {len(negatives)} negative prompts for {len(prompts)} prompts")
    if per_prompt < 1:
        raise UserError(f"num_images_per_prompt must be at least 1, not {per_prompt}")
    repeat = range(per_prompt)
    return [prompt for prompt in prompts for _ in repeat], [negative for negative in negatives for _ in repeat]
