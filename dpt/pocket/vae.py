"""The pocket's autoencoder: 64x64 pixels to 16x16x4 latents of unit variance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from dpt.data.scenes.render import render
from dpt.data.scenes.world import World, make_scene
from dpt.pocket.recipe import VaeRecipe


def build_vae(recipe: VaeRecipe) -> AutoencoderKL:
    levels = len(recipe.channels)
    return AutoencoderKL(
        block_out_channels=recipe.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=recipe.latent_channels,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
    )


def pictures(world: World, seed: int, first: int, n: int) -> Tensor:
    """(n, 3, 64, 64) in [-1, 1]: scenes first, first + 1, …"""
    images = np.stack([render(make_scene(seed, first + i, world)) for i in range(n)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def row_noise(shape: torch.Size, seed: int, step: int, rows: range) -> Tensor:
    """Gaussian noise, row by row a function of (seed, step, row)."""
    streams = [torch.Generator().manual_seed((seed * 1_000_003 + step) * 1009 + row) for row in rows]
    return torch.stack([torch.randn(shape[1:], generator=stream) for stream in streams])


class VaeStage:
    name = "vae"

    def __init__(self, recipe: VaeRecipe, world: World, seed: int, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        self.recipe, self.seed = recipe, seed
        self.world = replace(world, held_out_kinds=())  # a picture may show what no caption of training says
        self.model = build_vae(recipe).to(device)

    def losses(self, step: int, rows: range) -> dict[str, Tensor]:
        first = step * self.recipe.schedule.batch
        device, dtype = self.model.device, self.model.dtype
        real = pictures(self.world, self.seed, first + rows.start, len(rows)).to(device)
        posterior = self.model.encode(real.to(dtype)).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = row_noise(mean.shape, self.seed, step, rows).to(device)
        latents = mean + noise * torch.exp(0.5 * logvar)
        made = self.model.decode(latents.to(dtype)).sample.float()
        pixels = F.l1_loss(made, real) + 2 * F.mse_loss(made, real)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return {"loss": pixels + self.recipe.kl * kl, "pixels": pixels, "kl": kl}


@torch.no_grad()
def whiten(vae: AutoencoderKL, images: Tensor) -> None:
    """Fold a shift and scale per channel into the 1x1 convolutions so that latents have mean 0 and deviation 1."""
    latents = vae.encode(images.to(vae.device)).latent_dist.mean
    mean = latents.mean((0, 2, 3))
    spread = latents.std((0, 2, 3))
    c = latents.shape[1]
    vae.quant_conv.weight[:c].div_(spread[:, None, None, None])
    vae.quant_conv.bias[:c].sub_(mean).div_(spread)
    vae.quant_conv.bias[c:].sub_(2 * spread.log())
    after = vae.post_quant_conv
    after.bias.add_(after.weight[:, :, 0, 0] @ mean)
    after.weight.mul_(spread[None, :, None, None])
