"""Whole Stable Diffusion models, small enough to build in a test, structured like the real ones."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dpt.backbone import unet_features
from dpt.backbone.base import FeatureSpec, Grid

START, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = (
    "a an the and of to in on with without left right above below one two three four "
    "red green blue yellow purple white circle square triangle star circles squares small large"
)
WORDS = VOCABULARY.split()
PROMPT = "a red circle to the left of a blue square"


@dataclass(frozen=True)
class TinyModel:
    """One configuration, shrunk: the same blocks in the same order, narrow."""

    name: str
    text_width: int
    down_blocks: tuple[str, ...]
    up_blocks: tuple[str, ...]
    heads: int | tuple[int, ...]
    linear_projection: bool
    prediction_type: str
    widths: tuple[int, ...] = (8, 8, 16, 16)
    vae_widths: tuple[int, ...] = (8, 8, 8, 8)
    latent_size: int = 8
    prompt_length: int = 24
    pad_token: str = END
    text_activation: str = "quick_gelu"
    scaling_factor: float = 0.18215
    scheduler: type = PNDMScheduler
    scheduler_extras: dict[str, Any] = field(default_factory=dict)


_SD_DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
_SD_UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3

SD1 = TinyModel("sd1", 24, _SD_DOWN, _SD_UP, heads=2, linear_projection=False, prediction_type="epsilon")
SD2_BASE = TinyModel(
    "sd2-base",
    32,
    _SD_DOWN,
    _SD_UP,
    heads=(1, 2, 2, 4),
    linear_projection=True,
    prediction_type="epsilon",
    pad_token="!",
    text_activation="gelu",
)
SD2_V = TinyModel(
    "sd2-v",
    32,
    _SD_DOWN,
    _SD_UP,
    heads=(1, 2, 2, 4),
    linear_projection=True,
    prediction_type="v_prediction",
    pad_token="!",
    text_activation="gelu",
    latent_size=12,
    scheduler=DDIMScheduler,
    scheduler_extras={"clip_sample": False, "set_alpha_to_one": False},
)
POCKET = TinyModel(
    "pocket",
    16,
    ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    heads=2,
    linear_projection=True,
    prediction_type="v_prediction",
    widths=(8, 16, 16),
    vae_widths=(8, 8, 8),
    latent_size=16,
    scaling_factor=0.7,
    scheduler=DDIMScheduler,
    scheduler_extras={"clip_sample": False, "set_alpha_to_one": False, "beta_schedule": "squaredcos_cap_v2"},
)
ALL = (SD1, SD2_BASE, SD2_V, POCKET)


def tokenizer(prompt_length: int = 24, pad_token: str = END, words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """A CLIPTokenizer that knows each of `words` as one token; other lower-case words fall apart."""
    merges = _merges_of(words)
    letters = [letter + ending for ending in ("", "</w>") for letter in LETTERS]
    entries = ["!", *letters, *("".join(pair) for pair in merges), START, END]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=prompt_length)


def _merges_of(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding until every word is whole. The library's own trainer breaks ties at random."""
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for pieces in spelled for pair in pairwise(pieces)):
        first, second = best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        for pieces in spelled:
            for place in range(len(pieces) - 2, -1, -1):
                if pieces[place : place + 2] == [first, second]:
                    pieces[place : place + 2] = [first + second]
    return merges


def text_encoder(model: TinyModel, tokens: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=model.text_width,
            intermediate_size=2 * model.text_width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=model.prompt_length,
            hidden_act=model.text_activation,
            projection_dim=model.text_width,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )


def unet(model: TinyModel) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=model.latent_size,
        in_channels=4,
        out_channels=4,
        down_block_types=model.down_blocks,
        up_block_types=model.up_blocks,
        block_out_channels=model.widths,
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=model.text_width,
        attention_head_dim=model.heads,
        use_linear_projection=model.linear_projection,
    )


def vae(model: TinyModel) -> AutoencoderKL:
    blocks = len(model.vae_widths)
    return AutoencoderKL(
        block_out_channels=model.vae_widths,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=model.latent_size * 2 ** (blocks - 1),
        scaling_factor=model.scaling_factor,
    )


def pipeline(model: TinyModel, seed: int = 0) -> StableDiffusionPipeline:
    """The model with random weights, as diffusers' own pipeline."""
    torch.manual_seed(seed)
    tokens = tokenizer(model.prompt_length, model.pad_token)
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "prediction_type": model.prediction_type,
        **model.scheduler_extras,
    }
    if model.scheduler is PNDMScheduler:
        settings["skip_prk_steps"] = True
    pipe = StableDiffusionPipeline(
        vae=vae(model),
        text_encoder=text_encoder(model, tokens),
        tokenizer=tokens,
        unet=unet(model),
        scheduler=model.scheduler(**settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


SAVED: dict[tuple[str, int], tuple[tempfile.TemporaryDirectory[str], torch.Tensor]] = {}
"""Models saved by this process, with the state in which making one leaves the random numbers."""


def save(model: TinyModel, folder: Path, seed: int = 0) -> Path:
    """The model as an ordinary diffusers folder: made once, then copied."""
    key = repr(model), seed
    if key not in SAVED:
        first = tempfile.TemporaryDirectory(prefix="tiny-", ignore_cleanup_errors=True)
        pipeline(model, seed).save_pretrained(first.name)
        SAVED[key] = first, torch.get_rng_state()
    first, state = SAVED[key]
    shutil.copytree(first.name, folder, dirs_exist_ok=True)
    torch.set_rng_state(state)
    return folder


@dataclass(frozen=True)
class BareUNet:
    """What a backbone knows from a UNet, or from its config alone."""

    network: Any = None
    config: Any = None
    match_width: int = 1024

    def lora_targets(self, blocks: Sequence[str]) -> list[str]:
        return unet_features.lora_targets(self.network, blocks)

    def feature_spec(self, name: str) -> FeatureSpec:
        return unet_features.parse_feature(self.config, name)

    def feature_grid(self, name: str) -> Grid:
        side = self.config["sample_size"]
        return unet_features.feature_grid(self.config, name, (side, side))
