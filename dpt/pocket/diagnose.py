"""Instruments for text conditioning: which words and facts the text encoder keeps, and whether layout follows them.

They open pockets of both kinds: `StableDiffusionPipeline` and `StableDiffusion3Pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusion3Pipeline, StableDiffusionPipeline
from torch import Tensor

from dpt.claims.facts import RELATIONS
from dpt.claims.words import COLOUR_WORDS, COLOURS, NUMBERS, OPPOSITE, SHAPE_WORDS, scene_plural
from dpt.data.scenes.world import BACKGROUNDS, POCKET_WORLD, World
from dpt.errors import UserError
from dpt.keyed_random import KeyedRandom
from dpt.pocket.alt_text import CaptionLabels, parse_words, random_caption
from dpt.pocket.clip import tokens
from dpt.pocket.mmdit import BiasedJointAttention, PromptEncoders, PromptStates, predict_velocity
from dpt.untrusted import read_json_object

Encode = Callable[[list[str]], PromptStates]

PredictX0 = Callable[[Tensor, float, list[str]], Tensor]
"""(noise, noise level in [0, 1], texts) to x0_pred."""

WORD_CLASSES = ("colour", "shape", "number", "relation", "negation", "order")

NOISE_LEVELS = (1.0, 0.96, 0.92)
"""The three highest of a sampler of 25 steps."""

TRIES_PER_PAIR = 200

BATCH = 100


@dataclass(frozen=True)
class DiagnosedModel:
    encode: Encode
    predict_x0: PredictX0
    vae: AutoencoderKL
    latent_shape: tuple[int, int, int]


@dataclass(frozen=True)
class Diagnosis:
    words: dict[str, dict[str, float]]
    probes: dict[str, dict[str, float]]
    layout: dict[str, list[float]]


def diagnose(folder: Path, captions: int, pairs: int, noises: int) -> Diagnosis:
    """All instruments on a model folder; `captions` fit the probes, a fifth as many test them."""
    model = open_model(folder)
    return Diagnosis(
        word_effects(model.encode, n=pairs),
        probe_accuracies(model.encode, n=captions, test=max(1, captions // 5)),
        layout_sensitivity(model, noises),
    )


def open_model(folder: Path) -> DiagnosedModel:
    index = folder / "model_index.json"
    kind = str(read_json_object(index).get("_class_name"))
    opener = {"StableDiffusionPipeline": _open_unet, "StableDiffusion3Pipeline": _open_mmdit}.get(kind)
    if opener is None:
        raise UserError(f"--model: {index} names {kind}; give a StableDiffusionPipeline or StableDiffusion3Pipeline")
    return opener(folder)


def _open_mmdit(folder: Path) -> DiagnosedModel:
    pipe = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, local_files_only=True
    )
    model, encoders = pipe.transformer, PromptEncoders(pipe.text_encoder, pipe.text_encoder_2, pipe.tokenizer)
    model.set_attn_processor(BiasedJointAttention())

    def predict_x0(noise: Tensor, level: float, texts: list[str]) -> Tensor:
        sigma, zero_tokens = torch.full((len(texts),), level), torch.zeros(len(texts), dtype=torch.long)
        noisy = level * noise
        return noisy - level * predict_velocity(model, noisy, sigma, encoders(texts), zero_tokens)

    size = model.config.sample_size
    return DiagnosedModel(encoders, predict_x0, pipe.vae, (model.config.in_channels, size, size))


def _open_unet(folder: Path) -> DiagnosedModel:
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    def encode(texts: list[str]) -> PromptStates:
        out = pipe.text_encoder(tokens(pipe.tokenizer, texts))
        return PromptStates(out.last_hidden_state, out.pooler_output)

    def predict_x0(noise: Tensor, level: float, texts: list[str]) -> Tensor:
        t = torch.tensor(round(level * scheduler.config.num_train_timesteps) - 1)
        noisy = scheduler.add_noise(torch.zeros_like(noise), noise, t[None])
        output = pipe.unet(noisy, t, encode(texts).states).sample
        signal = scheduler.alphas_cumprod[t].sqrt()
        sigma = (1 - scheduler.alphas_cumprod[t]).sqrt()
        if scheduler.config.prediction_type == "v_prediction":
            return signal * noisy - sigma * output
        return (noisy - sigma * output) / signal

    size = pipe.unet.config.sample_size
    return DiagnosedModel(encode, predict_x0, pipe.vae, (pipe.unet.config.in_channels, size, size))


def swap_word(text: str, kind: str, world: World, rng: KeyedRandom) -> str | None:
    """The caption with one word replaced by another of the same class; None if it has no such word.

    For "order" the first two noun phrases swap places; for "negation" "without" becomes "with".
    """
    words = text.split()
    if kind == "order":
        return _swap_nouns(text, words)
    table = {
        "colour": _alternatives([COLOUR_WORDS[c][0] for c in world.colours]),
        "shape": _alternatives([SHAPE_WORDS[s][0] for s in world.shapes])
        | _alternatives([scene_plural(SHAPE_WORDS[s][0]) for s in world.shapes]),
        "number": _alternatives(list(NUMBERS[2:5])),
        "relation": {**{a: [b] for a, b in OPPOSITE.items()}, "over": ["under"], "under": ["over"]},
        "negation": {"without": ["with"]},
    }[kind]
    positions = [i for i, word in enumerate(words) if word in table]
    if not positions:
        return None
    at = rng.choice(positions)
    return " ".join([*words[:at], rng.choice(table[words[at]]), *words[at + 1 :]])


def _alternatives(words: list[str]) -> dict[str, list[str]]:
    return {word: [other for other in words if other != word] for word in words}


def _swap_nouns(text: str, words: list[str]) -> str | None:
    phrases = parse_words(text).phrases
    if len(phrases) < 2 or phrases[0].n != phrases[1].n or phrases[0].noun == phrases[1].noun:
        return None
    colours = {name for names in COLOUR_WORDS.values() for name in names}
    spans = [(p.head - 1 if words[p.head - 1] in colours else p.head, p.head + 1) for p in phrases[:2]]
    (a, b), (c, d) = spans
    return " ".join([*words[:a], *words[c:d], *words[b:c], *words[a:b], *words[d:]]) if b - a == d - c else None


@torch.no_grad()
def word_effects(
    encode: Encode, world: World = POCKET_WORLD, n: int = 60, seed: int = 1
) -> dict[str, dict[str, float]]:
    """By word class, how far a swapped word moves the text states, relative to their norm."""
    effects: dict[str, dict[str, float]] = {}
    for kind in WORD_CLASSES:
        pairs: list[tuple[str, str]] = []
        for index in range(TRIES_PER_PAIR * n):
            rng = KeyedRandom("swap", seed, kind, index)
            text = random_caption(world, rng)
            swapped = swap_word(text, kind, world, rng)
            if swapped is not None and swapped != text:
                pairs.append((text, swapped))
            if len(pairs) == n:
                break
        if pairs:
            before, after = (encode(list(side)) for side in zip(*pairs, strict=True))
            effects[kind] = _relative_distances(before, after)
    return effects


def _relative_distances(before: PromptStates, after: PromptStates) -> dict[str, float]:
    distance, norm = (after.states - before.states).norm(dim=-1), before.states.norm(dim=-1)
    pooled = (after.pooled - before.pooled).norm(dim=-1) / before.pooled.norm(dim=-1)
    return {
        "largest_token": float((distance.amax(1) / norm.mean(1)).mean()),
        "all_tokens": float((distance.square().sum(1) / norm.square().sum(1)).sqrt().mean()),
        "last_token": float((distance[:, -1] / norm[:, -1]).mean()),
        "pooled": float(pooled.mean()),
    }


@torch.no_grad()
def probe_accuracies(
    encode: Encode, world: World = POCKET_WORLD, n: int = 3000, test: int = 600, seed: int = 2
) -> dict[str, dict[str, float]]:
    """Test accuracy of linear probes for a caption's facts, from its last state and its pooled state."""
    labels = CaptionLabels(world)
    texts = [random_caption(world, KeyedRandom("probe", seed, i)) for i in range(n + test)]
    truth = torch.tensor([labels.caption(parse_words(text)) for text in texts])
    parts = [encode(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
    sources = {
        "last_token": torch.cat([p.states[:, -1] for p in parts]),
        "pooled": torch.cat([p.pooled for p in parts]),
    }
    return {name: _probe(source, truth, labels.groups, n) for name, source in sources.items()}


def _probe(source: Tensor, truth: Tensor, groups: list[str], n: int) -> dict[str, float]:
    """Ridge regression onto one-hot labels, fitted to the first n rows; accuracies are averaged by group."""
    features = torch.cat([(source - source[:n].mean(0)) / (source[:n].std(0) + 1e-6), torch.ones(len(source), 1)], 1)
    gram = features[:n].T @ features[:n] + torch.eye(features.shape[1])
    with_relation = truth[n:, 0] < len(RELATIONS)
    accuracies: dict[str, list[float]] = {}
    for column, group in enumerate(groups):
        one_hot = torch.nn.functional.one_hot(truth[:n, column], int(truth[:, column].max()) + 1).float()
        predicted = (features[n:] @ torch.linalg.solve(gram, features[:n].T @ one_hot)).argmax(1)
        rows = with_relation if group.startswith("role") else torch.ones_like(with_relation)
        if group == "count":  # nearly all counts are zero: only where the truth or the prediction is not
            rows = (truth[n:, column] > 0) | (predicted > 0)
        if rows.any():
            accuracies.setdefault(group, []).append(float((predicted == truth[n:, column])[rows].float().mean()))
    return {group: sum(values) / len(values) for group, values in accuracies.items()}


@dataclass(frozen=True)
class LayoutCase:
    first: tuple[str, str]
    relation: str
    second: tuple[str, str]
    other_colour: str
    """What the first object's colour is changed to."""

    def text(self, relation: str | None = None, colour: str | None = None) -> str:
        relation = relation or self.relation
        words = f"to the {relation} of" if relation in ("left", "right") else relation
        return f"a {colour or self.first[0]} {self.first[1]} {words} a {self.second[0]} {self.second[1]}"


CASES = (
    LayoutCase(("red", "circle"), "left", ("blue", "square"), "green"),
    LayoutCase(("green", "triangle"), "right", ("purple", "circle"), "red"),
    LayoutCase(("blue", "cross"), "above", ("yellow", "square"), "purple"),
    LayoutCase(("purple", "square"), "below", ("green", "circle"), "yellow"),
)


@torch.no_grad()
def layout_sensitivity(model: DiagnosedModel, noises: int = 4) -> dict[str, list[float]]:
    """By noise level: how x0_pred depends on the relation in the prompt, from the same noise.

    `relation_over_colour` is the change by a reversed relation over the change by another colour; `named_side` the
    fraction of predictions with the objects' colours on the stated sides; `offset` their distance along that axis,
    where the image is 2 wide.
    """
    noise = torch.randn((noises, *model.latent_shape), generator=torch.Generator().manual_seed(5))
    result: dict[str, list[float]] = {"levels": list(NOISE_LEVELS)}
    for level in NOISE_LEVELS:
        relation_change = colour_change = 0.0
        offsets: list[Tensor] = []
        for case in CASES:
            reverse = OPPOSITE[case.relation]
            texts = [case.text(), case.text(relation=reverse), case.text(colour=case.other_colour)]
            x0 = model.predict_x0(noise.repeat(3, 1, 1, 1), level, [text for text in texts for _ in range(noises)])
            original, reversed_, recoloured = x0.chunk(3)
            relation_change += float((reversed_ - original).norm())
            colour_change += float((recoloured - original).norm())
            for latents, relation in ((original, case.relation), (reversed_, reverse)):
                offsets.append(
                    _offset(model.vae.decode(latents / model.vae.config.scaling_factor).sample, case, relation)
                )
        offset = torch.cat(offsets)
        values = {
            "relation_over_colour": relation_change / max(colour_change, 1e-9),
            "named_side": float((offset > 0).float().mean()),
            "offset": float(offset.mean()),
        }
        for name, value in values.items():
            result.setdefault(name, []).append(value)
    return result


def _offset(pixels: Tensor, case: LayoutCase, relation: str) -> Tensor:
    """How far the first colour's centre lies from the second's in the direction of the relation."""
    background = torch.tensor(BACKGROUNDS["white"], dtype=torch.float32)
    difference = background / 127.5 - 1 - pixels.permute(0, 2, 3, 1)
    directions = [background - torch.tensor(COLOURS[c], dtype=torch.float32) for c in (case.first[0], case.second[0])]
    first, second = (difference @ (d / d.norm()) for d in directions)
    line = torch.linspace(-1, 1, pixels.shape[-1])
    axis = 2 if relation in ("left", "right") else 1
    centres = []
    for weight in ((first - second).relu(), (second - first).relu()):
        along = weight.sum(3 - axis)
        centres.append((along * line).sum(1) / (along.sum(1) + 1e-6))
    offset = centres[1] - centres[0]
    return offset if relation in ("left", "above") else -offset
