"""`DPTPipeline`: a diffusers pipeline with self-correction; `pipeline_families` has the class of each model family."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate.hooks import CpuOffload
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from dpt.backbone.base import Condition, Grid
from dpt.backbone.noise import STEP_RULE, is_flow
from dpt.data.images import to_pil
from dpt.errors import UserError
from dpt.sampling.draw import SamplingSettings, calls_per_picture
from dpt.sampling.guidance import unused_guidance, unused_sizes, with_sizes
from dpt.sampling.loop import denoise
from dpt.sampling.options import (
    ALWAYS,
    NO_CORRECTION,
    Correction,
    Guidance,
    Interval,
    SizeConditions,
    recommended_correction,
    resolve_correction,
)
from dpt.sampling.pipeline_files import PipelineFiles
from dpt.sampling.pipeline_inputs import (
    Embeddings,
    GuidedCall,
    OnStepEnd,
    Prompts,
    StepEndCallback,
    attention_scale,
    conditions,
    lora_scaled,
)
from dpt.score.matching import Scorer

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

Generators = torch.Generator | list[torch.Generator]


@dataclass
class DPTPipelineOutput(BaseOutput):
    images: Any
    """As output_type says: a list of PIL images; (B,H,W,3) or (B,3,H,W) in [0,1]; or latents (B,C,h,w)."""
    nsfw_content_detected: list[bool] | None = None


class DPTPipeline(PipelineFiles):
    """Text to images with self-correction. Without an adapter its images are those of the stock pipeline.

    `from_pretrained`, `from_pipe` and `from_backbone` return the class of the model's family, which is also a
    subclass of the stock pipeline: all that diffusers documents for that one works.
    """

    deprecated_arguments: tuple[str, ...] = ()
    """What the stock pipeline takes beside the arguments in its signature."""

    def skip_layers(self, condition: Condition, prompts: list[str], clip_skip: int) -> Condition:
        """The condition with states from before the last `clip_skip` layers of the CLIP text encoders."""
        known = inspect.signature(self.encode_prompt).parameters
        if "clip_skip" not in known:
            raise UserError(f"clip_skip has no meaning for the text encoders of a {self.stock_name()}")
        plain = {"device": self.backbone.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        others = {name: None for name in ("prompt_2", "prompt_3") if name in known}
        states = self.encode_prompt(prompts, **others, **plain, clip_skip=clip_skip)[0]
        return replace(condition, states=states)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        negative_prompt: Prompts = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        true_cfg_scale: float = 1.0,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        correction_factor: float | None = None,
        correction_target: str | None = None,
        correction_norm: str | None = None,
        correction_start: float | None = None,
        correction_end: float | None = None,
        correction_every: int | None = None,
        **stock_arguments: Any,
    ) -> Any:
        """Sample images; the arguments are those of the stock pipeline, then those of guidance and correction.

        Guidance scale and negative prompt default to the model's and checkpoint's `generation_defaults.json`. Without
        a correction_factor the correction that the checkpoint recommends is used, if any; 0 turns it off. Arguments
        that only the stock pipeline knows are passed to it; they cannot be combined with a correction.
        """
        spacing = {name: list(v) for name, v in (("timesteps", timesteps), ("sigmas", sigmas)) if v is not None}
        steps = len(next(iter(spacing.values()))) if spacing else num_inference_steps
        embeddings = Embeddings(prompt_embeds, pooled_prompt_embeds)
        limits = (correction_start, correction_end, correction_every)
        settings = SamplingSettings(
            steps,
            self.defaults.guidance_scale if guidance_scale is None else guidance_scale,
            height=height,
            width=width,
            guidance_interval=Interval(guidance_start, guidance_end),
            guidance_rescale=guidance_rescale,
            correction=self._correction(
                steps, embeddings, correction_factor, correction_target, correction_norm, *limits
            ),
            true_cfg_scale=true_cfg_scale,
            sizes=SizeConditions(original_size, crops_coords_top_left, target_size),
        )
        if negative_prompt is None and negative_prompt_embeds is None:
            negative_prompt = self.defaults.negative_prompt or None
        images = {"ip_adapter_image": ip_adapter_image, "ip_adapter_image_embeds": ip_adapter_image_embeds}
        attention = {"cross_attention_kwargs": cross_attention_kwargs}
        lora_scale, only_stock = attention_scale({**images, **attention, **stock_arguments})
        if only_stock:
            given = {**locals(), "guidance_scale": settings.guidance_scale, **only_stock}
            return self._stock_call(only_stock, given, settings)
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"the output type is one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}")
        self._guidance_scale, self._guidance_rescale = settings.guidance_scale, guidance_rescale
        self._clip_skip, self._cross_attention_kwargs, self._interrupt = clip_skip, cross_attention_kwargs, False
        negative_embeddings = Embeddings(negative_prompt_embeds, negative_pooled_prompt_embeds)
        with lora_scaled(self.components, lora_scale):
            text, negative, negatives = conditions(
                self, prompt, negative_prompt, embeddings, negative_embeddings, num_images_per_prompt, clip_skip
            )
            latent_size = self.backbone.latent_size(height, width)
            text, negative = (with_sizes(self.backbone, own, settings.sizes, latent_size) for own in (text, negative))
            unused = unused_guidance(self.backbone, settings.guidance, negatives)
            for sentence in (*unused, *unused_sizes(self.backbone, settings.sizes)):
                warnings.warn(sentence, stacklevel=2)
            self._prepare_scheduler(settings)
            call = self._guided_call(text, negative, settings)
            hooks = list(call.hooks)
            if callback_on_step_end is not None:
                inputs = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
                guidance_at = partial(self._guidance, settings)
                hooks.append(StepEndCallback(self, callback_on_step_end, inputs, call, guidance_at))
            noise = self._noise(latents, generator, len(text), latent_size)
            with self.progress_bar(total=steps) as bar:
                latents = denoise(
                    call,
                    self.scheduler,
                    noise,
                    steps,
                    generators=generator,
                    on_step=self._progress(bar, steps),
                    hooks=hooks,
                    spacing=spacing,
                    eta=eta,
                )
            output, unsafe = self._convert(latents, output_type)
        self.maybe_free_model_hooks()
        if return_dict:
            return DPTPipelineOutput(output, unsafe)
        return (output, unsafe) if hasattr(self, "safety_checker") else (output,)

    def _correction(self, steps: int, embeddings: Embeddings, factor: float | None, *others: Any) -> Correction:
        """The correction given, or the checkpoint's."""
        recommended = None if self.adapter is None else self.defaults.correction
        correction = resolve_correction(recommended_correction(recommended, steps), factor, *others)
        if not correction.on:
            return correction
        if self.adapter is None:
            raise UserError("a correction needs an adapter: give from_pretrained a checkpoint that has one")
        if embeddings.states is None or embeddings.pooled is not None:
            return correction
        if factor is not None:
            raise UserError("a correction matches images with the prompt: give prompt, not prompt_embeds")
        warnings.warn("no self-correction: it needs the prompt, and prompt_embeds was given", stacklevel=3)
        return NO_CORRECTION

    def _guidance(self, settings: SamplingSettings, scale: float) -> Guidance:
        """As in diffusers, a scale of 1 or less is no guidance, except where it is an input of the network."""
        is_off = scale <= 1 and not self.backbone.guidance_is_embedded
        return replace(settings.guidance, scale=1.0 if is_off else scale)

    def _guided_call(self, text: Condition, negative: Condition, settings: SamplingSettings) -> GuidedCall:
        scorer = None
        if settings.correction.on and self.adapter is not None:
            self._load_offloaded(self.backbone.network)
            scorer = Scorer(self.backbone, self.adapter)
        guidance = self._guidance(settings, settings.guidance_scale)
        return GuidedCall(self.backbone, text, negative, guidance, settings.correction, scorer)

    @staticmethod
    def _load_offloaded(network: Any) -> None:
        """A partial forward pass does not call the network itself, which is when accelerate would load it."""
        hook = getattr(network, "_hf_hook", None)
        if isinstance(hook, CpuOffload):
            hook.pre_forward(network)

    def _prepare_scheduler(self, settings: SamplingSettings) -> None:
        flow = is_flow(self.backbone.scheduler_config)
        if is_flow({"_class_name": type(self.scheduler).__name__, **self.scheduler.config}) != flow:
            kind = "needs a flow matching scheduler" if flow else "has no use for a flow matching scheduler"
            raise UserError(f"this model {kind}, and pipe.scheduler is a {type(self.scheduler).__name__}")
        self.scheduler.step_rule = self.backbone.scheduler_config.get(STEP_RULE)
        self._num_timesteps = calls_per_picture(self.backbone, settings, self.scheduler)

    def _progress(self, bar: Any, steps: int) -> Callable[[], None]:
        """Advances the bar once a step, of which some schedulers make two calls."""
        calls = 0

        def advance() -> None:
            nonlocal calls
            calls += 1
            bar.update(calls * steps // self._num_timesteps - bar.n)

        return advance

    def _stock_call(self, only_stock: Mapping[str, Any], given: Mapping[str, Any], settings: SamplingSettings) -> Any:
        """The stock pipeline's own call, for arguments that only it knows."""
        known = {*inspect.signature(super().__call__).parameters, *self.deprecated_arguments}
        name = next(iter(only_stock))
        if unknown := [name for name in only_stock if name not in known]:
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {unknown[0]!r}")
        if settings.correction.on or settings.guidance_interval != ALWAYS:
            raise UserError(f"{name} cannot be combined with self-correction or an interval of guidance")
        arguments = {name: value for name, value in given.items() if name in known and name != "self"}
        arguments["callback_on_step_end_tensor_inputs"] = list(given["callback_on_step_end_tensor_inputs"])
        return super().__call__(**arguments)

    def _noise(self, latents: Tensor | None, generator: Generators | None, count: int, size: Grid) -> Tensor:
        """Standard normal noise (B,C,h,w), drawn as the stock pipelines draw it."""
        shape = (count, self.backbone.latent_channels, *size)
        device = self.backbone.device
        if latents is not None:
            if latents.shape != shape:
                raise UserError(f"the latents have the shape {tuple(latents.shape)}, and it should be {shape}")
            return latents.to(device, torch.float32)
        if isinstance(generator, Sequence) and len(generator) != count:
            raise UserError(f"there are {len(generator)} generators for {count} images")
        several = list(generator) if isinstance(generator, Sequence) else generator
        noise: Tensor = randn_tensor(shape, generator=several, device=device, dtype=self.backbone.dtype)
        return noise.float()

    def _convert(self, latents: Tensor, output_type: str) -> tuple[Any, list[bool] | None]:
        """The images, and which of them the safety checker blackened, if the pipeline has one."""
        if output_type == "latent":
            return latents, None
        images, unsafe = self.backbone.decode_latents(latents), None
        if getattr(self, "safety_checker", None) is not None:
            images, unsafe = self.run_safety_checker(images, images.device, self.backbone.dtype)
            images[torch.tensor(unsafe, device=images.device)] = -1
        images = images.cpu()
        if output_type == "pil":
            return [to_pil(image) for image in images], unsafe
        values = (images / 2 + 0.5).clamp(0, 1)
        return (values if output_type == "pt" else values.permute(0, 2, 3, 1).numpy()), unsafe
