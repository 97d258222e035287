"""`DPTPipeline` for each model family: a stock pipeline of diffusers, its components as a backbone and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dpt.backbone.base import Backbone, Condition
from dpt.backbone.folder import ModelFolder
from dpt.backbone.loading import quiet_libraries
from dpt.backbone.mmdit import TransformerBackbone
from dpt.backbone.sdxl import SDXLBackbone
from dpt.backbone.text import PromptEncoder
from dpt.backbone.transformer_families import AURAFLOW, FLUX, SD3, TransformerFamily
from dpt.backbone.unet import UNetBackbone
from dpt.errors import UserError
from dpt.generation_defaults import generation_defaults
from dpt.sampling.pipeline import DPTPipeline

with quiet_libraries():  # they remark on image processors that no pipeline here uses
    from diffusers import (
        AuraFlowPipeline,
        FluxPipeline,
        StableDiffusion3Pipeline,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
    )


class StableDiffusionDPTPipeline(DPTPipeline, StableDiffusionPipeline):
    """Stable Diffusion 1.x and 2.x."""

    deprecated_arguments = ("callback", "callback_steps")

    @classmethod
    def stock_name(cls) -> str:
        return StableDiffusionPipeline.__name__

    @classmethod
    def parts_of(cls, backbone: Any) -> dict[str, Any]:
        parts = {name: getattr(backbone, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
        return {**parts, "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def make_backbone(self, scheduler_config: dict[str, Any], folder: ModelFolder) -> Backbone:
        return UNetBackbone(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=self.vae,
            unet=self.unet,
            scheduler_config=scheduler_config,
            folder=folder,
            generation_defaults=generation_defaults(folder.path),
        )

    def skip_layers(self, condition: Condition, prompts: list[str], clip_skip: int) -> Condition:
        """As the stock pipeline, whose own code expects an older layout of the text encoder."""
        backbone: Backbone = self.backbone
        encoder: Any = self.text_encoder
        tokens = {"padding": "max_length", "max_length": backbone.prompt_length, "truncation": True}
        ids = self.tokenizer(prompts, **tokens, return_tensors="pt").input_ids.to(backbone.device)
        hidden = encoder(ids, output_hidden_states=True).hidden_states
        if not 0 <= clip_skip < len(hidden):
            raise UserError(f"clip_skip must be between 0 and {len(hidden) - 1} for this text encoder, not {clip_skip}")
        norm: Any = getattr(encoder, "text_model", encoder).final_layer_norm
        return replace(condition, states=norm(hidden[-1 - clip_skip]))


class StableDiffusionXLDPTPipeline(DPTPipeline, StableDiffusionXLPipeline):
    """Stable Diffusion XL."""

    deprecated_arguments = ("callback", "callback_steps")

    @classmethod
    def stock_name(cls) -> str:
        return StableDiffusionXLPipeline.__name__

    @classmethod
    def parts_of(cls, backbone: Any) -> dict[str, Any]:
        models = {name: encoder.model for name, encoder in backbone.encoders.items()}
        tokenizers = {_tokenizer_of(name): encoder.tokenizer for name, encoder in backbone.encoders.items()}
        zeros = {"force_zeros_for_empty_prompt": backbone.zeros_for_empty, "add_watermarker": False}
        return {**models, **tokenizers, **zeros, "vae": backbone.vae, "unet": backbone.unet}

    def make_backbone(self, scheduler_config: dict[str, Any], folder: ModelFolder) -> Backbone:
        parts = self.components
        names = [name for name in ("text_encoder", "text_encoder_2") if parts[name] is not None]
        return SDXLBackbone(
            encoders={name: PromptEncoder(parts[_tokenizer_of(name)], parts[name]) for name in names},
            zeros_for_empty=bool(self.config.force_zeros_for_empty_prompt),
            vae=self.vae,
            unet=self.unet,
            scheduler_config=scheduler_config,
            folder=folder,
            generation_defaults=generation_defaults(folder.path),
        )


class TransformerDPTPipeline(DPTPipeline):
    """What the families of diffusion transformers have in common."""

    family: TransformerFamily

    @classmethod
    def stock_name(cls) -> str:
        return cls.family.pipeline

    @classmethod
    def parts_of(cls, backbone: Any) -> dict[str, Any]:
        texts = {part.name: None for part in cls.family.texts}
        models = {name: encoder.model for name, encoder in backbone.encoders.items()}
        tokenizers = {_tokenizer_of(name): encoder.tokenizer for name, encoder in backbone.encoders.items()}
        return {**texts, **models, **tokenizers, "vae": backbone.vae, "transformer": backbone.transformer}

    def make_backbone(self, scheduler_config: dict[str, Any], folder: ModelFolder) -> Backbone:
        parts = self.components
        encoders = {
            part.name: PromptEncoder(parts[_tokenizer_of(part.name)], parts[part.name])
            for part in self.family.texts
            if part.is_text_encoder and parts[part.name] is not None
        }
        return TransformerBackbone(
            self.family,
            encoders=encoders,
            vae=self.vae,
            transformer=self.transformer,
            scheduler_config=scheduler_config,
            folder=folder,
            generation_defaults=generation_defaults(folder.path),
        )


class StableDiffusion3DPTPipeline(TransformerDPTPipeline, StableDiffusion3Pipeline):
    """Stable Diffusion 3 and 3.5."""

    family = SD3


class FluxDPTPipeline(TransformerDPTPipeline, FluxPipeline):
    """FLUX.1."""

    family = FLUX


class AuraFlowDPTPipeline(TransformerDPTPipeline, AuraFlowPipeline):
    """AuraFlow."""

    family = AURAFLOW


FAMILIES = {
    kind.family.transformer.classes[0]: kind
    for kind in (StableDiffusion3DPTPipeline, FluxDPTPipeline, AuraFlowDPTPipeline)
}
"""By the class of the transformer."""


def family_of(network_class: str, has_second: bool = False) -> type[DPTPipeline]:
    """The pipeline class for a denoising network of this class, and with a second text encoder or without."""
    if network_class == "UNet2DConditionModel":
        return StableDiffusionXLDPTPipeline if has_second else StableDiffusionDPTPipeline
    if network_class in FAMILIES:
        return FAMILIES[network_class]
    raise UserError(f"DPTPipeline has no family for a {network_class}")


def _tokenizer_of(text_encoder: str) -> str:
    return text_encoder.replace("text_encoder", "tokenizer")
