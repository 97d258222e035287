"""The stages of the transformer pocket, each resumable; then a folder for the stock `StableDiffusion3Pipeline`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from dpt.claims.words import vocabulary
from dpt.data.scenes.world import WORLDS
from dpt.distributed import Processes
from dpt.errors import UserError
from dpt.keyed_random import KeyedRandom
from dpt.pocket.alt_text import random_caption
from dpt.pocket.assemble import HalfPrecision, declare_float32, replace_folder
from dpt.pocket.build import train_alone
from dpt.pocket.clip import tokens
from dpt.pocket.mmdit import (
    MMDiTRecipe,
    PromptEncoders,
    TransformerRecipe,
    TransformerStage,
    build_flow_scheduler,
)
from dpt.pocket.text_teaching import TeachingStage, rescale, with_projection, word_encoder
from dpt.pocket.training import train_stage
from dpt.pocket.unet import encode_scenes
from dpt.untrusted import read_json

MMDIT_STAGES = ("text", "mmdit")

RESCALE_CAPTIONS = 500


def is_mmdit_recipe(file: Path | None) -> bool:
    if file is None:
        return False
    content = read_json(file)
    return isinstance(content, dict) and "transformer" in content


def build_mmdit(
    recipe: MMDiTRecipe,
    start: Path,
    work: Path,
    out: Path,
    until: float | None,
    last: str,
    device: str,
    processes: Processes,
    compile_blocks: bool = False,
) -> bool:
    """Train what is not trained yet, up to the stage `last` and the clock time `until`; True when that is complete.

    The VAE, the tokenizer and the initial text encoder are those of the pocket in `start`. Writes `out` once there is
    a denoiser.
    """
    world = WORLDS[recipe.world]
    vae = _open(AutoencoderKL, start / "vae").float().to(device).eval().requires_grad_(False)
    tokenizer = _open(CLIPTokenizer, start / "tokenizer")
    encoder = with_projection(_open(CLIPTextModel, start / "text_encoder").float()).to(device)
    encoder.set_attn_implementation("eager")  # faster to differentiate on a CPU
    teaching = TeachingStage(recipe.text, world, encoder, tokenizer)
    complete = train_alone(teaching, recipe.text.schedule, recipe.text, work, until, processes)
    if not complete or last == "text":
        return complete
    encoder.set_attn_implementation("sdpa")
    encoder.eval().requires_grad_(False)
    captions = [random_caption(world, KeyedRandom("rescale", recipe.seed, i)) for i in range(RESCALE_CAPTIONS)]
    rescale(encoder, tokens(tokenizer, captions).to(device))
    words = word_encoder(encoder.config, recipe.words_width, recipe.seed).to(device)
    tokenizer.model_max_length = recipe.text_tokens
    encoders = PromptEncoders(encoder, words, tokenizer)

    latents_folder = work / "mmdit-latents"  # the UNet's scenes have another seed
    latents = encode_scenes(vae, world, recipe.seed, recipe.transformer.latents, latents_folder, processes)
    stage = TransformerStage(recipe.transformer, world, recipe.seed, latents, encoders)
    if compile_blocks:
        for block in stage.model.transformer_blocks:
            block.compile()
    folder = work / stage.name
    complete = train_stage(stage, recipe.transformer.schedule, recipe.transformer, folder, until, processes)
    if processes.is_main:
        save_pipeline(out, stage.model, recipe.transformer, encoders, vae)
    return complete


def _open(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--start: cannot open {folder}: {str(error).strip().splitlines()[0]}; give the folder of a finished pocket"
        ) from error


def zero_t5(width: int) -> tuple[T5EncoderModel, T5TokenizerFast]:
    """A third text encoder whose every state is zero, and a tokenizer of the scenes' words.

    With it a plain `from_pretrained` and call do what they do without a third encoder; without it `from_pretrained`
    needs `text_encoder_3=None, tokenizer_3=None`.
    """
    pieces = ["<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in vocabulary())]
    tokenizer = T5TokenizerFast(vocab=[(piece, 0.0 if i < 3 else -1.0) for i, piece in enumerate(pieces)], extra_ids=0)
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    encoder = T5EncoderModel(config).eval().requires_grad_(False)
    encoder.encoder.final_layer_norm.weight.zero_()
    return encoder, tokenizer


def save_pipeline(
    out: Path,
    model: SD3Transformer2DModel,
    recipe: TransformerRecipe,
    encoders: PromptEncoders,
    vae: AutoencoderKL,
) -> None:
    """Write the pipeline in half precision, all or nothing."""
    vae.register_to_config(shift_factor=0.0)  # the SD3 pipeline adds it, and cannot add None
    t5, t5_tokenizer = zero_t5(encoders.width)
    pipeline = StableDiffusion3Pipeline(
        transformer=model,
        scheduler=build_flow_scheduler(recipe),
        vae=vae,
        text_encoder=encoders.first,
        tokenizer=encoders.tokenizer,
        text_encoder_2=encoders.second,
        tokenizer_2=encoders.tokenizer,
        text_encoder_3=t5,
        tokenizer_3=t5_tokenizer,
    )
    with replace_folder(out) as fresh:
        with HalfPrecision(model, vae, encoders.first, encoders.second, t5):
            pipeline.save_pretrained(fresh)
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            declare_float32(fresh / name / "config.json")
