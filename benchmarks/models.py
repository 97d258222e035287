"""Models to time: the pocket, one with a UNet of 35 million weights in Stable Diffusion's blocks, and Stable Diffusion
2.1 and XL at their true size, and shrunk.

Weights are random where there are none: they do not matter to time. What is sampled or learnt with them is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dpt.adapter import Adapter, config_for
from dpt.backbone import Backbone, memory, open_backbone
from dpt.backbone.device import resolve_dtype
from dpt.backbone.folder import ModelFolder
from dpt.backbone.sdxl import SDXLBackbone
from dpt.backbone.text import PromptEncoder
from dpt.backbone.unet import UNetBackbone
from dpt.embedded import EMBEDDED, model_location

SizeName = Literal["pocket", "narrow", "full", "xl", "tiny", "tiny-xl"]

TOKENS = 77

SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}


@dataclass(frozen=True)
class TextSize:
    width: int
    layers: int
    heads: int
    projection: int
    activation: str = "gelu"


@dataclass(frozen=True)
class Size:
    name: str
    texts: tuple[TextSize, ...]
    """One text encoder, or both of Stable Diffusion XL."""
    widths: tuple[int, ...]
    heads: int | tuple[int, ...]
    side: int
    """Of the latents it is timed at."""
    linear: bool = True
    depths: tuple[int, ...] = (1, 1, 1, 1)
    """Transformer layers in each level; 0 for a level without attention."""
    size_ids_width: int = 256
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    groups: int = 32

    @property
    def is_xl(self) -> bool:
        return len(self.texts) == 2

    @property
    def text_width(self) -> int:
        return sum(text.width for text in self.texts)


NARROW = Size("narrow", (), (64, 128, 256, 256), 8, 32, linear=False, depths=(1, 1, 1, 0))

FULL = Size(
    "Stable Diffusion 2.1", (TextSize(1024, 23, 16, 1024),), (320, 640, 1280, 1280), (5, 10, 20, 20), 64,
    depths=(1, 1, 1, 0),
)  # fmt: skip

XL = Size(
    "Stable Diffusion XL", (TextSize(768, 12, 12, 768, "quick_gelu"), TextSize(1280, 32, 20, 1280)),
    (320, 640, 1280), (5, 10, 20), 128, depths=(0, 2, 10),
)  # fmt: skip

TINY = Size(
    "Stable Diffusion 2.1, shrunk", (TextSize(32, 2, 2, 32),), (16, 16, 32, 32), (1, 2, 2, 4), 16,
    depths=(1, 1, 1, 0), vae_widths=(8, 8, 8, 8), layers=1, groups=8,
)  # fmt: skip

TINY_XL = Size(
    "Stable Diffusion XL, shrunk", (TextSize(16, 2, 2, 16), TextSize(24, 2, 2, 24)), (16, 32, 32), (1, 2, 2), 16,
    depths=(0, 1, 2), size_ids_width=16, vae_widths=(8, 8, 8, 8), layers=1, groups=8,
)  # fmt: skip

SMALL_ADAPTER: dict[str, Any] = {
    "hidden_dim": 16, "nheads": 2, "dim_feedforward": 32, "num_queries_matching": 3, "num_queries_rec": 4,
}  # fmt: skip
"""The shape of an adapter for the shrunk models."""

SIZES = {"full": FULL, "xl": XL, "tiny": TINY, "tiny-xl": TINY_XL}


def unet_of(size: Size, text_width: int | None = None) -> Any:
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in size.depths[: len(size.widths)]]
    up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(size.depths[: len(size.widths)])]
    added: dict[str, Any] = {}
    if size.is_xl:
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": size.size_ids_width,
            "projection_class_embeddings_input_dim": size.texts[1].projection + 6 * size.size_ids_width,
        }
    return UNet2DConditionModel(
        sample_size=size.side,
        block_out_channels=size.widths,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=size.layers,
        transformer_layers_per_block=tuple(depth or 1 for depth in size.depths[: len(size.widths)]),
        cross_attention_dim=size.text_width if text_width is None else text_width,
        attention_head_dim=size.heads,
        use_linear_projection=size.linear,
        norm_num_groups=size.groups,
        **added,
    )


def open_size(name: SizeName, device: torch.device, dtype: str | None = None) -> Backbone:
    """A whole model: the narrow one has the pocket's text encoder and VAE, those of `SIZES` all parts of their own."""
    pocket: Any = open_backbone(model_location(EMBEDDED), device=device, dtype=dtype)
    if name == "pocket":
        return pocket
    precision = resolve_dtype(device, dtype)
    torch.manual_seed(0)
    if name == "narrow":
        with device:
            pocket.unet = _frozen(unet_of(NARROW, pocket.text_width), precision)
        return pocket
    size = SIZES[name]
    words = pocket.tokenizer
    words.model_max_length = TOKENS
    special = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with device, _default_dtype(precision):  # XL in float32 would take twice the memory for a moment
        encoders = [
            _frozen(text_encoder(size, number, len(words), **special), precision) for number in range(len(size.texts))
        ]
        unet = _frozen(unet_of(size), precision)
    with device:
        vae = _frozen(vae_of(size), torch.float32)
    parts = {"vae": vae, "unet": unet, "scheduler_config": SCHEDULER, "folder": pocket.folder}
    if size.is_xl:
        named = {f"text_encoder{'_2' * number}": PromptEncoder(words, model) for number, model in enumerate(encoders)}
        return SDXLBackbone(encoders=named, **parts)
    return UNetBackbone(tokenizer=words, text_encoder=encoders[0], **parts)


def network_alone(size: Size) -> Backbone:
    """A backbone of a random UNet, without the parts that its denoising does not need."""
    parts: dict[str, Any] = {
        "vae": SimpleNamespace(config=SimpleNamespace(block_out_channels=size.vae_widths, latent_channels=4)),
        "unet": unet_of(size).eval().requires_grad_(False),
        "scheduler_config": SCHEDULER,
        "folder": ModelFolder(model_location_path()),
    }
    encoders = {
        f"text_encoder{'_2' * number}": PromptEncoder(SimpleNamespace(model_max_length=TOKENS), _config_alone(text))
        for number, text in enumerate(size.texts)
    }
    if size.is_xl:
        return SDXLBackbone(encoders=encoders, **parts)
    first = encoders["text_encoder"]
    return UNetBackbone(tokenizer=first.tokenizer, text_encoder=first.model, **parts)


def model_location_path() -> Path:
    return Path(model_location(EMBEDDED))


def _config_alone(text: TextSize) -> Any:
    config = {"hidden_size": text.width, "projection_dim": text.projection, "max_position_embeddings": TOKENS}
    return SimpleNamespace(config=SimpleNamespace(**config, num_hidden_layers=text.layers))


def _frozen(module: Any, dtype: torch.dtype) -> Any:
    return module.to(dtype).eval().requires_grad_(False)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def text_encoder(size: Size, number: int, words: int, **special: Any) -> Any:
    """A text tower with a vocabulary of so many words."""
    text = size.texts[number]
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=text.width,
        intermediate_size=4 * text.width,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        max_position_embeddings=TOKENS,
        projection_dim=text.projection,
        hidden_act=text.activation,
        **special,
    )
    return CLIPTextModelWithProjection(config) if number else CLIPTextModel(config)


def vae_of(size: Size) -> Any:
    n = len(size.vae_widths)
    return AutoencoderKL(
        block_out_channels=size.vae_widths,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        layers_per_block=size.layers,
        norm_num_groups=size.groups,
        latent_channels=4,
    )


def adapter_for(backbone: Backbone, feature: str | None = None, **shape: Any) -> Adapter:
    """Of the published size."""
    config = config_for(backbone, feature or backbone.default_feature, backbone.text_width, **shape)
    return Adapter(config).to(backbone.device)


@contextmanager
def as_it_came(unet: Any) -> Iterator[None]:
    """Inside, its layers are diffusers' own, which keep more for the backward pass."""
    ours = [(module, type(module)) for module in unet.modules() if type(module).__module__ == memory.__name__]
    for module, kind in ours:
        module.__class__ = kind.__base__
    try:
        yield
    finally:
        for module, kind in ours:
            module.__class__ = kind
