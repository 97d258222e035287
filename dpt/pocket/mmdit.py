"""The transformer pocket: diffusers' SD3 transformer, trained by rectified flow in resumable stages, and its folder.

Without a third text encoder the SD3 pipeline appends `max_sequence_length` (by default 256) zero tokens to the prompt.
SD3 gives text no positions, so these tokens stay equal in every layer. In training one token stands for all: the
logarithm of their number is added to its attention scores. Some rows have no zero tokens, so that the model also
draws with `max_sequence_length=0`, which is faster.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from dpt.claims.words import vocabulary
from dpt.data.scenes.world import WORLDS, World, make_scene
from dpt.distributed import Processes
from dpt.errors import UserError
from dpt.keyed_random import KeyedRandom
from dpt.pocket.alt_text import AltTextConfig, alt_text, random_caption
from dpt.pocket.build import HalfPrecision, declare_float32, replace_folder, train_alone
from dpt.pocket.clip import TeachingRecipe, TeachingStage, rescale, tokens, with_projection, word_encoder
from dpt.pocket.training import Schedule, train_stage
from dpt.pocket.unet import encode_scenes, narrowest_gap, row_noise
from dpt.records import read_record
from dpt.untrusted import read_json

MMDIT_RECIPE_FILE = Path(__file__).with_name("recipe_mmdit.json")

NUM_TRAIN_TIMESTEPS = 1000

MIN_SIGMA = 1e-3

NUM_ZERO_TOKENS = 256
"""The pipeline's default `max_sequence_length`."""

MASKED_SCORE = -1e4


@dataclass(frozen=True)
class TransformerPhase:
    """A stretch of the denoiser's training."""

    until: int
    """The step at which it ends; the last phase lasts as long as the training does."""
    captions: AltTextConfig
    sorts: tuple[tuple[str, float], ...]
    """Weights of the sorts of scene; groups of two, three and four are equally frequent."""


@dataclass(frozen=True)
class TransformerRecipe:
    layers: int = 5
    heads: int = 6
    head_width: int = 32
    patch: int = 2
    latents: int = 60_000
    gap: float = 4.0
    """Pixels that must be free between any two objects; scenes that are tighter are left out."""
    caption_dropout: float = 0.1
    noise_mean: float = 0.4
    """Mean of the logit of sigma, which is normally distributed."""
    noise_deviation: float = 1.0
    no_zero_tokens: float = 0.5
    """Fraction of rows without zero tokens."""
    shift: float = 1.0
    """Shift of the sampler's sigmas."""
    phases: tuple[TransformerPhase, ...] = ()
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=200_000, batch=32, learning_rate=1e-3))


@dataclass(frozen=True)
class MMDiTRecipe:
    seed: int
    world: str
    words_width: int
    """Width of the second text encoder."""
    text_tokens: int
    """Prompts are padded and cut to this many tokens."""
    text: TeachingRecipe
    transformer: TransformerRecipe


def read_mmdit_recipe(file: Path = MMDIT_RECIPE_FILE) -> MMDiTRecipe:
    return read_record(MMDiTRecipe, file)


@dataclass(frozen=True)
class PromptStates:
    states: Tensor
    """(B, tokens, width), without the zero tokens that the pipeline appends."""
    pooled: Tensor


class PromptEncoders:
    """The pipeline's two CLIP text encoders with their common tokenizer."""

    def __init__(
        self, first: CLIPTextModelWithProjection, second: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer
    ) -> None:
        self.first, self.second, self.tokenizer = first, second, tokenizer
        self.width = first.config.hidden_size + second.config.hidden_size
        self.pooled_width = first.config.projection_dim + second.config.projection_dim

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> PromptStates:
        ids = tokens(self.tokenizer, texts).to(self.first.device)
        outs = [encoder(ids, output_hidden_states=True) for encoder in (self.first, self.second)]
        states = torch.cat([out.hidden_states[-2] for out in outs], dim=-1)
        return PromptStates(states, torch.cat([out.text_embeds for out in outs], dim=-1))


def zero_token_bias(counts: Tensor, image_tokens: int, text_tokens: int) -> Tensor:
    """(B, 1, 1, keys) added to attention scores, so that the last key counts as `counts` equal keys."""
    bias = torch.zeros(len(counts), image_tokens + text_tokens + 1, device=counts.device)
    log_counts = counts.clamp(min=1).float().log()
    bias[:, -1] = torch.where(counts > 0, log_counts, torch.full_like(log_counts, MASKED_SCORE))
    return bias[:, None, None]


class BiasedJointAttention:
    """`JointAttnProcessor2_0` with a score bias, written out: on a CPU the fused one is slow to differentiate."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        score_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        batch, image_tokens, _ = hidden_states.shape

        def by_head(x: Tensor) -> Tensor:
            return x.view(batch, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)

        q = attn.norm_q(by_head(attn.to_q(hidden_states)))
        k = attn.norm_k(by_head(attn.to_k(hidden_states)))
        v = by_head(attn.to_v(hidden_states))
        text_q = attn.norm_added_q(by_head(attn.add_q_proj(encoder_hidden_states)))
        text_k = attn.norm_added_k(by_head(attn.add_k_proj(encoder_hidden_states)))
        text_v = by_head(attn.add_v_proj(encoder_hidden_states))
        q, k, v = (torch.cat(pair, dim=2) for pair in ((q, text_q), (k, text_k), (v, text_v)))
        scores = torch.matmul(q * (1 / math.sqrt(q.shape[-1])), k.transpose(-1, -2))
        if score_bias is not None:
            scores = scores + score_bias
        mixed = torch.matmul(scores.softmax(dim=-1), v).transpose(1, 2).reshape(batch, q.shape[2], -1)
        image, text = mixed[:, :image_tokens], mixed[:, image_tokens:]
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)


def build_transformer(
    recipe: TransformerRecipe, channels: int, size: int, width: int, pooled_width: int
) -> SD3Transformer2DModel:
    model = SD3Transformer2DModel(
        sample_size=size,
        patch_size=recipe.patch,
        in_channels=channels,
        out_channels=channels,
        num_layers=recipe.layers,
        attention_head_dim=recipe.head_width,
        num_attention_heads=recipe.heads,
        joint_attention_dim=width,
        caption_projection_dim=recipe.heads * recipe.head_width,
        pooled_projection_dim=pooled_width,
        pos_embed_max_size=size // recipe.patch,
        qk_norm="rms_norm",
    )
    model.set_attn_processor(BiasedJointAttention())
    return model


def build_flow_scheduler(recipe: TransformerRecipe) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS, shift=recipe.shift)


def predict_velocity(
    model: SD3Transformer2DModel, noisy: Tensor, sigma: Tensor, prompt: PromptStates, zero_tokens: Tensor
) -> Tensor:
    """The prediction of noise minus latents; `zero_tokens` is the number of appended zero tokens per row."""
    dtype = next(model.parameters()).dtype
    image_tokens = (noisy.shape[-1] // model.config.patch_size) * (noisy.shape[-2] // model.config.patch_size)
    bias = zero_token_bias(zero_tokens, image_tokens, prompt.states.shape[1])
    prediction: Tensor = model(
        hidden_states=noisy.to(dtype),
        timestep=sigma * NUM_TRAIN_TIMESTEPS,
        encoder_hidden_states=F.pad(prompt.states, (0, 0, 0, 1)).to(dtype),
        pooled_projections=prompt.pooled.to(dtype),
        joint_attention_kwargs={"score_bias": bias.to(dtype)},
        return_dict=False,
    )[0]
    return prediction.float()


class TransformerStage:
    """Scene, caption, noise and sigma are functions of (seed, step, row)."""

    name = "mmdit"

    def __init__(
        self, recipe: TransformerRecipe, world: World, seed: int, latents: Tensor, encoders: PromptEncoders
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.world, self.seed = recipe, world, seed
        self.latents, self.encoders = latents, encoders
        channels, size = latents.shape[1], latents.shape[-1]
        self.model = build_transformer(recipe, channels, size, encoders.width, encoders.pooled_width)
        self.model.to(encoders.first.device)
        self.logits = NormalDist(recipe.noise_mean, recipe.noise_deviation)
        self.scenes = [make_scene(seed, index, world) for index in range(len(latents))]
        self.indices: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        """Indices of scenes by sort and number of objects."""
        for index, scene in enumerate(self.scenes):
            if narrowest_gap(scene) >= recipe.gap:
                sort = KeyedRandom("scene", seed, index).weighted_choice(world.sorts)
                self.indices[sort][len(scene.objects)].append(index)

    def losses(self, step: int, rows: range) -> dict[str, Tensor]:
        phase = self._phase(step)
        drawn = [self._draw_row(step, row, phase) for row in rows]
        indices, texts, logits, zero_tokens = (list(column) for column in zip(*drawn, strict=True))
        device = self.model.device
        clean = self.latents[indices].float().to(device)
        noise = row_noise(clean.shape, self.seed, step, rows).to(device)
        sigma = torch.tensor(logits, device=device).sigmoid().clamp(MIN_SIGMA, 1.0)
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        prompt = self.encoders(texts)
        predicted = predict_velocity(self.model, noisy, sigma, prompt, torch.tensor(zero_tokens, device=device))
        errors = (predicted - (noise - clean)).square().mean((1, 2, 3))
        return {"loss": errors.mean()}

    def _draw_row(self, step: int, row: int, phase: TransformerPhase) -> tuple[int, str, float, int]:
        rng = KeyedRandom("mmdit", self.seed, step, row)
        by_number = self.indices[rng.weighted_choice(phase.sorts)]
        index = rng.choice(by_number[rng.choice(sorted(by_number))])
        text = alt_text(self.scenes[index], self.world, rng, phase.captions)
        if rng.chance(self.recipe.caption_dropout):
            text = ""
        logit = self.logits.inv_cdf(rng.uniform(1e-6, 1 - 1e-6))
        return index, text, logit, 0 if rng.chance(self.recipe.no_zero_tokens) else NUM_ZERO_TOKENS

    def _phase(self, step: int) -> TransformerPhase:
        for phase in self.recipe.phases[:-1]:
            if step < phase.until:
                return phase
        return self.recipe.phases[-1]


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
