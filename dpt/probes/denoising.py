"""The denoising error on held-out images under their captions, which tuning should not raise."""

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
    """The summed mean square error of every `parts`-th captioned example from `part` on, and their number.

    Each example always has the same timestep and noise, so that two models differ by what they learnt.
    """
    total, count = torch.zeros((), dtype=widest_float(backbone.device), device=backbone.device), 0
    for stream in streams.values():
        if not stream.source.captioned:
            continue
        stream = stream.only(CAPTION_ONLY)
        own = range(part, len(stream), parts)
        chunks = [list(own[i : i + batch_size]) for i in range(0, len(own), batch_size)]
        for positions, batch in zip(chunks, load(stream, chunks), strict=True):
            batch, rng = batch.to(backbone.device), SampleRNG(NOISE_SEED, positions)
            condition = encode_texts(backbone, batch, {CAPTION})[CAPTION]
            (z,) = encode_pair_images(backbone, batch, (TRUE,))
            noise = rng.normal(z.shape[1:], "validation noise").to(z.device)
            t = backbone.noise.sample_t(rng, "validation timestep").to(z.device)
            prediction = backbone.predict(backbone.noise.add_noise(z, noise, t), t, condition)
            error = prediction - backbone.noise.target(z, noise, t)
            total += error.to(total).square().flatten(1).mean(dim=1).sum()
            count += len(batch)
            on_batch(len(batch))
    return float(total), count


def num_captioned(streams: Mapping[str, Stream]) -> int:
    """How many examples `denoising_error` reads in all."""
    return sum(len(stream) for stream in streams.values() if stream.source.captioned)
