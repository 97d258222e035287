"""A small CLIP and its tokenizer, trained on scenes; and supervised training of a text encoder on captions alone.

The CLIP's text tower conditions the UNet. A contrastive text encoder may lose word order. In supervised training linear
heads on the tensors that the SD3 pipeline passes to its denoiser (the penultimate hidden states and the pooled
projection) must predict the word at each token, the noun phrase at its head word, and all facts of the caption at the
end and padding tokens.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from dpt.claims.facts import all_hold
from dpt.claims.words import Caption, vocabulary
from dpt.data.scenes.captions import hard_caption, scene_caption
from dpt.data.scenes.render import render
from dpt.data.scenes.world import Scene, World, make_scene
from dpt.keyed_random import KeyedRandom
from dpt.pocket.alt_text import COUNT_CLASSES, CaptionLabels, parse_words, random_caption
from dpt.pocket.training import Schedule, TextRecipe

START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"


def learn_merges(words: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Byte-pair encoding carried on until every word is one symbol; returns all symbols and the merges in order."""
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    symbols = sorted({symbol for word in spelled for symbol in word})
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in spelled for pair in itertools.pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        symbols.append("".join(best))
        spelled = [_merge(word, best) for word in spelled]
    return symbols, merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def build_tokenizer(words: list[str], length: int) -> CLIPTokenizer:
    symbols, merges = learn_merges(words)
    vocabulary = {symbol: i for i, symbol in enumerate([START, END, UNKNOWN, *dict.fromkeys(symbols)])}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        model_max_length=length,
    )


CAPTION_NOISE = 0.35

HARD_SHARE = 0.5

MEAN = (0.48145466, 0.4578275, 0.40821073)

DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def build_clip(recipe: TextRecipe, tokenizer: CLIPTokenizer) -> CLIPModel:
    tower = {
        "hidden_size": recipe.width,
        "intermediate_size": 4 * recipe.width,
        "num_attention_heads": recipe.heads,
        "projection_dim": recipe.width,
    }
    text = tower | {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": recipe.layers,
        "max_position_embeddings": recipe.length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {"image_size": 64, "patch_size": recipe.patch, "num_hidden_layers": recipe.image_layers}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=recipe.width)
    return CLIPModel(config)


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids


def clip_pixels(images: list[np.ndarray]) -> Tensor:
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


class ClipStage:
    name = "clip"

    def __init__(self, recipe: TextRecipe, world: World, seed: int, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        self.recipe, self.world, self.seed = recipe, world, seed
        self.tokenizer = build_tokenizer(vocabulary(), recipe.length)
        self.model = build_clip(recipe, self.tokenizer).to(device)

    def losses(self, step: int, rows: range) -> dict[str, Tensor]:
        n = len(rows)
        scenes = [make_scene(self.seed, step * n + i, self.world) for i in rows]
        captions, hard = self._captions(scenes, step)
        texts = captions + hard
        device, dtype = self.model.device, self.model.dtype
        truth = torch.tensor([[all_hold(text.facts, s.objects) for text in texts] for s in scenes], device=device)
        pixels = clip_pixels([render(s) for s in scenes]).to(device, dtype)
        ids = tokens(self.tokenizer, [text.text for text in texts]).to(device)
        image = self.model.get_image_features(pixel_values=pixels).pooler_output
        words = self.model.get_text_features(input_ids=ids).pooler_output
        scale = self.model.logit_scale.float().exp().clamp(max=100)
        logits = scale * F.normalize(image.float(), dim=-1) @ F.normalize(words.float(), dim=-1).T
        # A caption that is also true of another image of the batch is not a negative for that image.
        own_pair = torch.zeros_like(truth)
        own_pair[torch.arange(n), torch.arange(n)] = True
        logits = logits.masked_fill(truth & ~own_pair, float("-inf"))
        target = torch.arange(n, device=device)
        to_text = F.cross_entropy(logits, target)
        to_image = F.cross_entropy(logits[:, :n].T, target)
        hit = (logits.argmax(1) == target).float().mean()
        return {"loss": (to_text + to_image) / 2, "to_text": to_text, "to_image": to_image, "hit": hit}

    def _captions(self, scenes: list[Scene], step: int) -> tuple[list[Caption], list[Caption]]:
        captions, hard = [], []
        for i, s in enumerate(scenes):
            rng = KeyedRandom("clip", self.seed, step, i)
            pair = hard_caption(s, self.world, rng) if rng.chance(HARD_SHARE) else None
            if pair is None:
                captions.append(scene_caption(s, self.world, rng, CAPTION_NOISE))
            else:
                captions.append(pair.caption)
                hard.append(pair.false_caption)
        return captions, hard


IGNORED = -100

COUNT_WEIGHT = 0.25
"""Weight of a count in the loss of a caption: nearly all counts are zero."""


@dataclass(frozen=True)
class TeachingRecipe:
    schedule: Schedule
    seed: int = 7
    word_weight: float = 1.0
    phrase_weight: float = 1.0
    caption_weight: float = 1.0
    pooled_weight: float = 1.0


@dataclass(frozen=True)
class LabelledCaptions:
    ids: Tensor
    words: Tensor
    """(B, L) the token itself; ignored at the start and at end and padding tokens."""
    phrases: Tensor
    """(B, L, 3) number, colour and shape at head words; ignored elsewhere."""
    captions: Tensor
    """(B, labels)"""
    ends: Tensor
    """(B, L) end and padding tokens."""


def label_captions(texts: list[str], tokenizer: CLIPTokenizer, labels: CaptionLabels) -> LabelledCaptions:
    ids = tokens(tokenizer, texts)
    ends = ids == tokenizer.eos_token_id
    words = ids.masked_fill(ends, IGNORED)
    words[:, 0] = IGNORED
    parsed = [parse_words(text) for text in texts]
    phrases = torch.full((*ids.shape, 3), IGNORED)
    for row, caption in enumerate(parsed):
        for phrase in caption.phrases:
            position = phrase.head + 1  # after the start token
            if position < ids.shape[1] - 1:  # the last token is an end token
                values = [min(phrase.n, COUNT_CLASSES - 1), *labels.noun(phrase.noun)]
                phrases[row, position] = torch.tensor(values)
    return LabelledCaptions(ids, words, phrases, torch.tensor([labels.caption(caption) for caption in parsed]), ends)


class TextWithHeads(nn.Module):
    """A text encoder and the heads that only its training needs."""

    def __init__(self, encoder: CLIPTextModelWithProjection, labels: CaptionLabels) -> None:
        super().__init__()
        config = encoder.config
        self.encoder, self.labels = encoder, labels
        self.word_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.phrase_head = nn.Linear(config.hidden_size, sum(labels.phrase_sizes))
        self.caption_head = nn.Linear(config.hidden_size, sum(labels.caption_sizes))
        self.pooled_head = nn.Linear(config.projection_dim, sum(labels.caption_sizes))

    def losses(self, batch: LabelledCaptions) -> dict[str, Tensor]:
        out = self.encoder(batch.ids, output_hidden_states=True)
        states = out.hidden_states[-2]
        heads = batch.phrases[..., 0] != IGNORED
        row = batch.ends.nonzero()[:, 0]
        phrase_sizes, caption_sizes = self.labels.phrase_sizes, self.labels.caption_sizes
        word_logits = self.word_head(states).float().flatten(0, 1)
        return {
            "word": F.cross_entropy(word_logits, batch.words.flatten(), ignore_index=IGNORED),
            "phrase": sum_of_losses(self.phrase_head(states[heads]), batch.phrases[heads], phrase_sizes),
            "caption": sum_of_losses(self.caption_head(states[batch.ends]), batch.captions[row], caption_sizes),
            "pooled": sum_of_losses(self.pooled_head(out.text_embeds), batch.captions, caption_sizes),
        }


def sum_of_losses(logits: Tensor, labels: Tensor, sizes: list[int]) -> Tensor:
    """Cross-entropy summed over label columns."""
    total = logits.new_zeros((), dtype=torch.float32)
    for column, part in enumerate(logits.float().split(sizes, dim=-1)):
        weight = COUNT_WEIGHT if sizes[column] == COUNT_CLASSES and len(sizes) > 3 else 1.0
        total = total + weight * F.cross_entropy(part, labels[:, column])
    return total


class TeachingStage:
    """Captions are a function of (seed, step, row)."""

    name = "text"

    def __init__(
        self, recipe: TeachingRecipe, world: World, encoder: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.world, self.seed, self.tokenizer = recipe, world, recipe.seed, tokenizer
        self.labels = CaptionLabels(world)
        self.device = encoder.device
        self.text = TextWithHeads(encoder, self.labels).to(self.device)
        self.model: nn.Module = self.text

    def losses(self, step: int, rows: range) -> dict[str, Tensor]:
        texts = [random_caption(self.world, KeyedRandom("teach", self.seed, step, row)) for row in rows]
        batch = label_captions(texts, self.tokenizer, self.labels)
        batch = LabelledCaptions(**{name: value.to(self.device) for name, value in vars(batch).items()})
        parts = self.text.losses(batch)
        weighted = [getattr(self.recipe, f"{name}_weight") * value for name, value in parts.items()]
        return {"loss": torch.stack(weighted).sum(), **parts}


def with_projection(encoder: CLIPTextModel) -> CLIPTextModelWithProjection:
    """The encoder as the class that the SD3 pipeline needs, with the identity as projection."""
    config = CLIPTextConfig(**{**encoder.config.to_dict(), "projection_dim": encoder.config.hidden_size})
    projected = CLIPTextModelWithProjection(config)
    projected.text_model.load_state_dict(getattr(encoder, "text_model", encoder).state_dict())
    with torch.no_grad():
        projected.text_projection.weight.copy_(torch.eye(config.hidden_size))
    return projected


@torch.no_grad()
def rescale(encoder: CLIPTextModelWithProjection, ids: Tensor) -> float:
    """Scale penultimate hidden states and pooled projection to unit deviation; returns the factor of the states.

    The layer norm before each sub-layer undoes a common factor of the residual stream, except for its epsilon. So all
    that writes into the stream is divided by the same number.
    """
    out = encoder(ids, output_hidden_states=True)
    factor = float(out.hidden_states[-2].std())
    text = encoder.text_model
    writers = [text.embeddings.token_embedding, text.embeddings.position_embedding]
    writers += [part for layer in text.encoder.layers for part in (layer.self_attn.out_proj, layer.mlp.fc2)]
    for writer in writers:
        for parameter in writer.parameters():
            parameter.div_(factor)
    encoder.text_projection.weight.div_(out.text_embeds.std())
    return factor


def word_encoder(config: CLIPTextConfig, width: int, seed: int) -> CLIPTextModelWithProjection:
    """The second text encoder: one layer, whose input is all that the pipeline uses.

    Its penultimate hidden state is a fixed random embedding of the word plus one of the position; its pooled
    projection is zero.
    """
    torch.manual_seed(seed)
    changes = {
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**{**config.to_dict(), **changes}))
    with torch.no_grad():
        encoder.text_model.embeddings.token_embedding.weight.normal_(0, 0.8)
        encoder.text_model.embeddings.position_embedding.weight.normal_(0, 0.6)
        encoder.text_projection.weight.zero_()
    return encoder.eval().requires_grad_(False)
