"""Models to time: the pocket, one with a UNet of 35 million weights in Stable Diffusion's blocks, and one of the size
of Stable Diffusion 2.1.

Weights are random where there are none: they do not matter to time. What is drawn or learnt by them is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dpt.adapter import Adapter, config_for
from dpt.backbone import Backbone, open_backbone
from dpt.backbone import memory_saving_layers as lean
from dpt.backbone.device import resolve_dtype
from dpt.embedded import EMBEDDED, model_location

FEATURE = "up1"
SizeName = Literal["pocket", "narrow", "full"]


@dataclass(frozen=True)
class Size:
    widths: tuple[int, ...]
    heads: int | tuple[int, ...]
    text_width: int
    linear: bool
    side: int
    """Of the latents it is timed at."""


NARROW = Size((64, 128, 256, 256), 8, 256, False, 32)
FULL = Size((320, 640, 1280, 1280), (5, 10, 20, 20), 1024, True, 64)
"""Stable Diffusion 2.1."""
TEXT_LAYERS, TEXT_HEADS = 23, 16
VAE_WIDTHS = (128, 256, 512, 512)


def unet_of(size: Size) -> Any:
    return UNet2DConditionModel(
        sample_size=size.side,
        block_out_channels=size.widths,
        cross_attention_dim=size.text_width,
        attention_head_dim=size.heads,  # type: ignore[arg-type]
        use_linear_projection=size.linear,
    )


def open_size(name: SizeName, device: torch.device, dtype: str | None = None) -> Backbone:
    """A whole model: the narrow one has the pocket's text encoder and VAE, the full one all parts of its own."""
    backbone = open_backbone(model_location(EMBEDDED), device=device, dtype=dtype)
    if name == "pocket":
        return backbone
    precision = resolve_dtype(device, dtype)
    torch.manual_seed(0)
    with device:
        if name == "narrow":
            unet = unet_of(Size(NARROW.widths, NARROW.heads, backbone.text_width, NARROW.linear, NARROW.side))
        else:
            unet = unet_of(FULL)
            backbone.text_encoder = _text_encoder(backbone).to(precision).eval().requires_grad_(False)
            backbone.vae = _vae().eval().requires_grad_(False)
    backbone.unet = unet.to(device, precision).eval().requires_grad_(False)
    return backbone


def _text_encoder(backbone: Backbone) -> Any:
    """OpenCLIP-H's text tower but for its words, which are the pocket's."""
    tokens = 77
    backbone.tokenizer.model_max_length = tokens
    known = backbone.text_encoder.config
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=known.vocab_size,
        hidden_size=FULL.text_width,
        intermediate_size=4 * FULL.text_width,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=TEXT_HEADS,
        max_position_embeddings=tokens,
        hidden_act="gelu",
        bos_token_id=known.bos_token_id,
        eos_token_id=known.eos_token_id,
        pad_token_id=known.pad_token_id,
    ))  # fmt: skip


def _vae() -> Any:
    n = len(VAE_WIDTHS)
    return AutoencoderKL(
        block_out_channels=VAE_WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        layers_per_block=2,
        latent_channels=4,
    )


def adapter_for(backbone: Backbone, **shape: Any) -> Adapter:
    """Of the published size."""
    width = backbone.text_width
    config = config_for(backbone, FEATURE, width, **shape)
    return Adapter(config).to(backbone.device)


@contextmanager
def as_it_came(unet: Any) -> Iterator[None]:
    """Inside, its layers are diffusers' own, which keep more for the backward pass."""
    ours = [(module, type(module)) for module in unet.modules() if type(module).__module__ == lean.__name__]
    for module, kind in ours:
        module.__class__ = kind.__base__
    try:
        yield
    finally:
        for module, kind in ours:
            module.__class__ = kind
