"""The frozen half of a step: texts and images are encoded, and noise is added to the latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition
from dpt.backbone.rng import SampleRNG
from dpt.data.example import Batch
from dpt.data.pairs import HARD, RANDOM, TRUE, Pair, encode_pair_images, encode_texts
from dpt.errors import UserError


@dataclass(frozen=True)
class NoiseConfig:
    fix_timestep: int | None = None
    noise_offset: float = 0.0

    def check(self, backbone: Backbone) -> None:
        last = backbone.noise.num_timesteps - 1
        if self.fix_timestep is not None and not 0 <= self.fix_timestep <= last:
            raise UserError(f"--fix_timestep is between 0 and {last}, not {self.fix_timestep}")

    def validation_timestep(self, backbone: Backbone) -> int:
        return backbone.noise.num_timesteps // 2 if self.fix_timestep is None else self.fix_timestep


@dataclass(frozen=True)
class NoisedBatch:
    """One t and one noise for each sample, shared by its images."""

    texts: dict[str, Condition]
    latents: Tensor  # (kinds,B,C,h,w)
    noise: Tensor  # (B,C,h,w)
    t: Tensor  # (B,)
    noisy: Tensor  # (kinds,B,C,h,w), z_t
    weights: Tensor  # (B,), of the denoising loss

    def inputs(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Condition]:
        """z_t, t and condition of each pair, (pairs*B,...), for one forward of the network."""
        z = torch.cat([self.noisy[pair.picture] for pair in pairs])
        condition = Condition.stack([self.texts[pair.text] for pair in pairs])
        return z, self.t.repeat(len(pairs)), condition


@torch.no_grad()
def add_noise_to_batch(
    backbone: Backbone, batch: Batch, pairs: Sequence[Pair], rng: SampleRNG, config: NoiseConfig
) -> NoisedBatch:
    """Noised latents and encoded texts of those pairs, with one call of each frozen encoder."""
    texts = encode_texts(backbone, batch, {pair.text for pair in pairs})
    kinds = (TRUE, HARD, RANDOM) if any(pair.picture != TRUE for pair in pairs) else (TRUE,)
    latents = encode_pair_images(backbone, batch, kinds)
    shape = latents.shape[2:]
    noise = rng.normal(shape, "noise")
    if config.noise_offset:
        noise = noise + config.noise_offset * rng.normal((shape[0], 1, 1), "noise offset")
    t = backbone.noise.sample_t(rng)
    if config.fix_timestep is not None:
        t = torch.full_like(t, config.fix_timestep)
    noise, t = noise.to(latents.device, non_blocking=True), t.to(latents.device, non_blocking=True)
    noisy = torch.stack([backbone.noise.add_noise(kind, noise, t) for kind in latents])
    return NoisedBatch(texts, latents, noise, t, noisy, batch.weights)
