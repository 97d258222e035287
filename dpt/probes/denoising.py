"""How well the model denoises held-out pictures under their captions: what tuning should not make it forget."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from dpt.backbone import Backbone
from dpt.backbone.device import widest_float
from dpt.backbone.rng import SampleRNG
from dpt.data.example import CAPTION_ONLY
from dpt.data.pairs import CAPTION, TRUE, encode_pair_images, encode_texts
from dpt.data.stream import Stream, load

NOISE_SEED = 0


@torch.no_grad()
def denoising_error(
    backbone: Backbone,
    streams: Mapping[str, Stream],
    batch_size: int = 16,
    part: int = 0,
    parts: int = 1,
    on_batch: Callable[[int], None] = lambda examples: None,
) -> tuple[float, int]:
    """The sum over every `parts`-th captioned example, beginning with `part`, of its mean square error; and how many.

    Each example has its own timestep and noise, always the same: two models differ by what was learnt.
    """
    total, asked = torch.zeros((), dtype=widest_float(backbone.device), device=backbone.device), 0
    for stream in streams.values():
        if not stream.source.captioned:
            continue
        stream = stream.only(CAPTION_ONLY)
        own = range(part, len(stream), parts)
        chunks = [list(own[i : i + batch_size]) for i in range(0, len(own), batch_size)]
        for positions, batch in zip(chunks, load(stream, chunks), strict=True):
            batch, chance = batch.to(backbone.device), SampleRNG(NOISE_SEED, positions)
            condition = encode_texts(backbone, batch, {CAPTION})[CAPTION]
            (z,) = encode_pair_images(backbone, batch, (TRUE,))
            noise = chance.normal(z.shape[1:], "validation noise").to(z.device)
            t = backbone.noise.sample_t(chance, "validation timestep").to(z.device)
            prediction = backbone.predict(backbone.noise.add_noise(z, noise, t), t, condition)
            error = prediction - backbone.noise.target(z, noise, t)
            total += error.to(total).square().flatten(1).mean(dim=1).sum()
            asked += len(batch)
            on_batch(len(batch))
    return float(total), asked


def num_captioned(streams: Mapping[str, Stream]) -> int:
    """How many examples `denoising_error` reads at most."""
    return sum(map(len, streams.values()))
