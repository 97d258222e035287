"""Stable Diffusion XL and its refiner, small enough to build in a test, structured like the real ones."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests import tiny_models
from tests.tiny_transformers import clip_config, quiet, save

__all__ = ["PROMPTS", "quiet", "refiner", "save", "sdxl"]

PROMPTS = ("a red circle to the left of a blue square", "two green stars")
LATENT_SIZE, PIXELS_PER_CELL = 8, 4
WIDTHS, POOLED = (12, 20), 16
"""Of the two text encoders."""


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4, latent_channels=4,
        sample_size=LATENT_SIZE * PIXELS_PER_CELL, scaling_factor=0.7,
    )  # fmt: skip


def unet(text_width: int, size_ids: int, side: int = LATENT_SIZE) -> UNet2DConditionModel:
    """Three levels without attention in the first, deeper transformers further down."""
    return UNet2DConditionModel(
        sample_size=side, in_channels=4, out_channels=4, block_out_channels=(8, 8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2), attention_head_dim=(1, 2, 4), cross_attention_dim=text_width,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED + 8 * size_ids,
    )  # fmt: skip


def scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )


def _second_encoder() -> CLIPTextModelWithProjection:
    config = clip_config(WIDTHS[1], POOLED)
    config.hidden_act = "gelu"
    return CLIPTextModelWithProjection(config)


def sdxl(seed: int = 0, zeros_for_empty: bool = True, side: int = LATENT_SIZE) -> StableDiffusionXLPipeline:
    torch.manual_seed(seed)
    pipe = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_config(WIDTHS[0], WIDTHS[0])),
        tokenizer=tiny_models.tokenizer(),
        text_encoder_2=_second_encoder(),
        tokenizer_2=tiny_models.tokenizer(pad_token="!"),
        unet=unet(sum(WIDTHS), 6, side),
        scheduler=scheduler(),
        force_zeros_for_empty_prompt=zeros_for_empty,
    )
    return quiet(pipe)


def refiner(seed: int = 1) -> StableDiffusionXLImg2ImgPipeline:
    torch.manual_seed(seed)
    pipe = StableDiffusionXLImg2ImgPipeline(
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=_second_encoder(),
        tokenizer_2=tiny_models.tokenizer(pad_token="!"),
        unet=unet(WIDTHS[1], 5),
        scheduler=scheduler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    )
    return quiet(pipe)
