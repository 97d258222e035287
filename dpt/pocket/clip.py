"""A small CLIP and its tokenizer, trained contrastively on scenes. Its text tower conditions the UNet."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from dpt.claims.description import Caption
from dpt.claims.facts import all_hold
from dpt.claims.words import vocabulary
from dpt.data.scenes.captions import scene_caption
from dpt.data.scenes.negatives import hard_caption
from dpt.data.scenes.render import render
from dpt.data.scenes.world import Scene, World, make_scene
from dpt.keyed_random import KeyedRandom
from dpt.pocket.recipe import TextRecipe

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
