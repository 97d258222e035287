"""Pictures read under texts: which with which, and the frozen model's features of all of them in one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition
from dpt.data.example import Batch

# The VAE's first layers hold whole pictures; more of them at once only costs memory.
PICTURES_AT_ONCE = 16

# Places of the pictures z, z-, z? among a batch's pictures.
TRUE, HARD, RANDOM = 0, 1, 2


@dataclass(frozen=True)
class Pair:
    """One of the kinds of picture of a batch, read under one of its kinds of text."""

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


def encode_texts(backbone: Backbone, said: dict[str, list[str]]) -> dict[str, Condition]:
    """All texts of a batch in one call of the text encoder."""
    encoded = backbone.encode_text([text for texts in said.values() for text in texts])
    sizes = [len(texts) for texts in said.values()]
    return dict(zip(said, encoded.split(sizes), strict=True))


def encode_pair_images(backbone: Backbone, batch: Batch, kinds: Sequence[int]) -> Tensor:
    """Latents of those kinds of picture, (kinds,B,C,h,w): the posterior's mean, so that a cache holds the same."""
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


def pair_features(
    backbone: Backbone, name: str, noisy: Tensor, t: Tensor, texts: dict[str, Condition], pairs: Sequence[Pair]
) -> Tensor:
    """The feature of each pair, (pairs*B,C,h,w), for z_t (kinds,B,...) and t (B,): one truncated forward."""
    z = torch.cat([noisy[pair.picture] for pair in pairs])
    condition = Condition.stack([texts[pair.text] for pair in pairs])
    return backbone.features(z, t.repeat(len(pairs)), condition, name)[0]
