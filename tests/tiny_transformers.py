"""Whole transformer models, small enough to build in a test, structured like the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from tests import tiny_models

PROMPTS = ("a red circle to the left of a blue square", "two green stars")
LATENT_SIZE, TEXT_WIDTH, T5_WIDTH = 8, 12, 28


def vae(shift: float | None = 0.1) -> AutoencoderKL:
    blocks = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=blocks[0], up_block_types=blocks[1], norm_num_groups=4,
        latent_channels=4, sample_size=2 * LATENT_SIZE, scaling_factor=0.7, shift_factor=shift,
    )  # fmt: skip


def clip_config(width: int, projection: int) -> CLIPTextConfig:
    tokens = tiny_models.tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=24, projection_dim=projection,
        bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
    )  # fmt: skip


def t5(width: int = T5_WIDTH) -> tuple[T5EncoderModel, T5TokenizerFast]:
    pieces = ["<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in tiny_models.WORDS)]
    tokenizer = T5TokenizerFast(vocab=[(piece, 0.0 if i < 3 else -1.0) for i, piece in enumerate(pieces)], extra_ids=0)
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    return T5EncoderModel(config), tokenizer


def sd3(seed: int = 0, with_t5: bool = True, shift: float = 3.0, **transformer: Any) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 with random weights, as diffusers' own pipeline; three blocks, the first as SD3.5's."""
    torch.manual_seed(seed)
    encoder, tokenizer = t5() if with_t5 else (None, None)
    settings = {
        "sample_size": LATENT_SIZE, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3,
        "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": T5_WIDTH,
        "caption_projection_dim": 16, "pooled_projection_dim": 14, "pos_embed_max_size": 4, "qk_norm": "rms_norm",
        "dual_attention_layers": (0,),
    }  # fmt: skip
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**{**settings, **transformer}),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=vae(),
        text_encoder=CLIPTextModelWithProjection(clip_config(TEXT_WIDTH, 8)),
        tokenizer=tiny_models.tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(TEXT_WIDTH, 6)),
        tokenizer_2=tiny_models.tokenizer(),
        text_encoder_3=encoder,
        tokenizer_3=tokenizer,
    )
    return quiet(pipe)


def flux(seed: int = 0, guidance_embeds: bool = True, **scheduler: Any) -> FluxPipeline:
    """FLUX with random weights: two blocks of each kind, packed latents, sigmas shifted by the image's size."""
    torch.manual_seed(seed)
    encoder, tokenizer = t5()
    pipe = FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=T5_WIDTH, pooled_projection_dim=TEXT_WIDTH, guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 2, 2),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, "use_dynamic_shifting": True, **scheduler}),
        vae=vae(),
        text_encoder=CLIPTextModel(clip_config(TEXT_WIDTH, TEXT_WIDTH)),
        tokenizer=tiny_models.tokenizer(),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
    )  # fmt: skip
    return quiet(pipe)


def auraflow(seed: int = 0) -> AuraFlowPipeline:
    """AuraFlow with random weights: blocks of two streams, then blocks of one."""
    torch.manual_seed(seed)
    _, tokenizer = t5()
    pipe = AuraFlowPipeline(
        transformer=AuraFlowTransformer2DModel(
            sample_size=LATENT_SIZE, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=2,
            num_single_dit_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=T5_WIDTH,
            caption_projection_dim=16, pos_embed_max_size=64,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        vae=vae(shift=None),  # its pipeline knows no shift
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=len(tokenizer), d_model=T5_WIDTH, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
        ),
        tokenizer=tokenizer,
    )  # fmt: skip
    return quiet(pipe)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(pipe: Any, folder: Path) -> Path:
    pipe.save_pretrained(folder)
    return folder
