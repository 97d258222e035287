"""Which images of a batch are conditioned on which texts, and their encodings and features in one forward."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition
from dpt.data.example import Batch, EncodedTexts

# The VAE's first layers hold whole images; more of them at once only costs memory.
PICTURES_AT_ONCE = 16

# Kinds of image: z, z-, z?.
TRUE, HARD, RANDOM = 0, 1, 2


@dataclass(frozen=True)
class Pair:
    """A kind of image of a batch, conditioned on a kind of text."""

    picture: int
    text: str


EXPRESSION, CAPTION, HARD_CAPTION, RANDOM_CAPTION = "r", "y", "y-", "y?"


GROUNDING = (Pair(TRUE, EXPRESSION),)

MATCHING = (
    Pair(TRUE, CAPTION),
    Pair(TRUE, HARD_CAPTION),
    Pair(TRUE, RANDOM_CAPTION),
    Pair(HARD, CAPTION),
    Pair(RANDOM, CAPTION),
)
"""Calls 2 to 6 of section 2.1; call 1 is that for grounding."""


def texts_of(batch: Batch) -> dict[str, list[str]]:
    """The texts of a batch by kind."""
    texts = {} if batch.expressions is None else {EXPRESSION: batch.expressions.texts}
    if batch.captions is not None:
        texts[CAPTION] = batch.captions
    if batch.negatives is not None:
        texts[HARD_CAPTION] = batch.negatives.hard.captions
        if batch.negatives.random is not None:
            texts[RANDOM_CAPTION] = batch.negatives.random.captions
    return texts


def encode_texts(backbone: Backbone, batch: Batch, kinds: Collection[str]) -> dict[str, Condition]:
    """The texts of these kinds: those that were not read from a cache, in one call of the text encoder."""
    texts = {kind: own for kind, own in texts_of(batch).items() if kind in kinds}
    prompts = [prompt for own in texts.values() for prompt in own]
    encoded = backbone.encode_text(prompts) if batch.encoded is None else _complete(backbone, prompts, batch.encoded)
    return dict(zip(texts, encoded.split([len(own) for own in texts.values()]), strict=True))


def _complete(backbone: Backbone, prompts: Sequence[str], known: EncodedTexts) -> Condition:
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known.rows]
    rows = {**known.rows, **{prompt: len(known.condition) + nth for nth, prompt in enumerate(missing)}}
    parts = [known.condition.to(backbone.device), *([backbone.encode_text(missing)] if missing else [])]
    return Condition.stack(parts)[[rows[prompt] for prompt in prompts]]


def encode_pair_images(backbone: Backbone, batch: Batch, kinds: Sequence[int]) -> Tensor:
    """Latents (kinds,B,C,h,w) of these kinds of image: the mean of the posterior, as a cache stores it."""
    negatives = batch.negatives
    by_kind = {TRUE: batch.images}
    if negatives is not None:
        by_kind[HARD] = negatives.hard.images
        if negatives.random is not None:
            by_kind[RANDOM] = negatives.random.images
    latents = torch.cat([by_kind[kind] for kind in kinds])
    if not batch.latent:
        latents = torch.cat([backbone.encode_images(part) for part in latents.split(PICTURES_AT_ONCE)])
    return latents.unflatten(0, (len(kinds), len(batch)))


def sizes_of(batch: Batch) -> dict[int, Tensor]:
    """`Condition.time_ids` (B,6) of each kind of image; empty for a model that does not take them."""
    by_kind = {TRUE: batch.sizes}
    if batch.negatives is not None:
        by_kind[HARD] = batch.negatives.hard.sizes
        if batch.negatives.random is not None:
            by_kind[RANDOM] = batch.negatives.random.sizes
    return {kind: sizes for kind, sizes in by_kind.items() if sizes is not None}


def pair_condition(texts: Mapping[str, Condition], sizes: Mapping[int, Tensor], pairs: Sequence[Pair]) -> Condition:
    """The text of each pair, with the sizes of its image if there are any, (pairs*B,...)."""
    condition = Condition.stack([texts[pair.text] for pair in pairs])
    return replace(condition, time_ids=torch.cat([sizes[pair.picture] for pair in pairs])) if sizes else condition


def pair_features(
    backbone: Backbone, name: str, noisy: Tensor, t: Tensor, condition: Condition, pairs: Sequence[Pair]
) -> Tensor:
    """The feature of each pair, (pairs*B,C,h,w), for z_t (kinds,B,...) and t (B,): one truncated forward."""
    z = torch.cat([noisy[pair.picture] for pair in pairs])
    return backbone.features(z, t.repeat(len(pairs)), condition, name)[0]
