"""The frozen half of a step: what a batch says and shows, encoded, and its pictures with noise in them."""

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
    """How much of it there is."""

    fix_timestep: int | None = None
    noise_offset: float = 0.0

    def check(self, backbone: Backbone) -> None:
        last = backbone.noise.num_timesteps - 1
        if self.fix_timestep is not None and not 0 <= self.fix_timestep <= last:
            raise UserError(f"--fix_timestep is between 0 and {last}, not {self.fix_timestep}")

    def middle(self, backbone: Backbone) -> int:
        """Where validation asks."""
        return backbone.noise.num_timesteps // 2 if self.fix_timestep is None else self.fix_timestep


@dataclass(frozen=True)
class NoisedBatch:
    """One t and one noise for each sample, shared by its pictures."""

    texts: dict[str, Condition]
    z: Tensor  # (kinds,B,C,h,w)
    noise: Tensor  # (B,C,h,w)
    t: Tensor  # (B,)
    noisy: Tensor  # (kinds,B,C,h,w), z_t
    weights: Tensor  # (B,), of the denoising loss

    def of(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Condition]:
        """z_t, t and condition of each pair, (pairs*B,...): what one forward of the network takes."""
        z = torch.cat([self.noisy[pair.picture] for pair in pairs])
        condition = Condition.stack([self.texts[pair.text] for pair in pairs])
        return z, self.t.repeat(len(pairs)), condition


@torch.no_grad()
def add_noise_to_batch(
    backbone: Backbone, batch: Batch, pairs: Sequence[Pair], chance: SampleRNG, how: NoiseConfig
) -> NoisedBatch:
    """What those pairs are made of, with one call of each frozen encoder."""
    texts = encode_texts(backbone, batch, {pair.text for pair in pairs})
    kinds = (TRUE, HARD, RANDOM) if any(pair.picture != TRUE for pair in pairs) else (TRUE,)
    z = encode_pair_images(backbone, batch, kinds)
    shape = z.shape[2:]
    noise = chance.normal(shape, "noise")
    if how.noise_offset:
        noise = noise + how.noise_offset * chance.normal((shape[0], 1, 1), "noise offset")
    t = backbone.noise.sample_t(chance)
    if how.fix_timestep is not None:
        t = torch.full_like(t, how.fix_timestep)
    noise, t = noise.to(z.device, non_blocking=True), t.to(z.device, non_blocking=True)
    return NoisedBatch(
        texts, z, noise, t, torch.stack([backbone.noise.add_noise(one, noise, t) for one in z]), batch.weights
    )
