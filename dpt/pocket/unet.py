"""The pocket's autoencoder (64x64 pixels to 16x16x4 latents of unit variance) and its UNet, trained on scenes."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from dpt.data.scenes.captions import scene_caption
from dpt.data.scenes.render import render
from dpt.data.scenes.world import Scene, World, make_scene
from dpt.distributed import Processes
from dpt.keyed_random import KeyedRandom
from dpt.pocket.clip import tokens
from dpt.pocket.training import Phase, UNetRecipe, VaeRecipe


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


CHUNK = 1000


def build_unet(recipe: UNetRecipe, latent_channels: int, text_width: int, latent_size: int) -> UNet2DConditionModel:
    down = ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in recipe.attention]
    up = ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(recipe.attention)]
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=recipe.layers_per_block,
        block_out_channels=recipe.channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        cross_attention_dim=text_width,
        # diffusers reads this as the number of heads per level, as Stable Diffusion 2's own config does
        attention_head_dim=tuple(width // recipe.head_width for width in recipe.channels),
        norm_num_groups=16,
        use_linear_projection=True,
    )


def build_scheduler(recipe: UNetRecipe) -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=recipe.beta_start,
        beta_end=recipe.beta_end,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, world: World, seed: int, n: int, folder: Path, processes: Processes) -> Tensor:
    """Latents (posterior means) of scenes 0 … n-1, stored in `folder` by chunks so that a stopped run continues."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {first: folder / f"{first:07d}.safetensors" for first in range(0, n, CHUNK)}
    missing = [first for first in processes.share(list(files)) if not files[first].exists()]
    for first in tqdm(missing, desc="latents", unit="chunk", disable=not processes.is_main):
        last = min(first + CHUNK, n)
        parts = [
            vae.encode(pictures(world, seed, start, min(50, last - start)).to(vae.device)).latent_dist.mean.half().cpu()
            for start in range(first, last, 50)
        ]
        temporary = files[first].with_suffix(".tmp")
        save_file({"latents": torch.cat(parts).contiguous()}, temporary)
        temporary.rename(files[first])
    processes.barrier()
    return torch.cat([load_file(file)["latents"] for file in files.values()])


def narrowest_gap(of: Scene) -> float:
    """Free pixels between the two closest objects; infinite if there is only one."""
    pairs = itertools.combinations(of.objects, 2)
    return min((a.box.gap_to(b.box) for a, b in pairs), default=float("inf"))


class UNetStage:
    name = "unet"

    def __init__(
        self,
        recipe: UNetRecipe,
        world: World,
        seed: int,
        latents: Tensor,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.world, self.seed = recipe, world, seed
        self.latents, self.text_encoder, self.tokenizer = latents, text_encoder, tokenizer
        self.model = build_unet(recipe, latents.shape[1], text_encoder.config.hidden_size, latents.shape[-1])
        self.model.to(text_encoder.device)
        if text_encoder.device.type == "cpu":
            # On a CPU, unfused attention has the faster backward pass at these head widths.
            self.model.set_attn_processor(AttnProcessor())
        self.scheduler = build_scheduler(recipe)
        # by the gap that a phase asks for, and the sort of scene
        self.scenes: dict[float, dict[str, list[int]]] = {p.gap: defaultdict(list) for p in recipe.phases}
        for index in range(len(latents)):
            sort = KeyedRandom("scene", seed, index).weighted_choice(world.sorts)
            free = narrowest_gap(make_scene(seed, index, world))
            for gap, by_sort in self.scenes.items():
                if free >= gap:
                    by_sort[sort].append(index)

    def losses(self, step: int, rows: range) -> dict[str, Tensor]:
        phase = self._phase(step)
        texts, indices = [], []
        for i in rows:
            rng = KeyedRandom("unet", self.seed, step, i)
            index = rng.choice(self.scenes[phase.gap][rng.weighted_choice(phase.sorts or self.world.sorts)])
            caption = scene_caption(
                make_scene(self.seed, index, self.world), self.world, rng, phase.noise, phase.omission
            )
            texts.append("" if rng.chance(self.recipe.caption_dropout) else caption.text)
            indices.append(index)
        device, dtype = self.model.device, self.model.dtype
        clean = self.latents[indices].float().to(device)
        noise = row_noise(clean.shape, self.seed, step, rows).to(device)
        t = torch.tensor([KeyedRandom("timestep", self.seed, step, i).randrange(1000) for i in rows], device=device)
        with torch.no_grad():
            states = self.text_encoder(tokens(self.tokenizer, texts).to(device)).last_hidden_state
        noisy = self.scheduler.add_noise(clean, noise, t)
        predicted = self.model(noisy.to(dtype), t, states.to(dtype)).sample.float()
        return {"loss": (predicted - self.scheduler.get_velocity(clean, noise, t)).square().mean()}

    def _phase(self, step: int) -> Phase:
        for phase in self.recipe.phases[:-1]:
            if step < phase.until:
                return phase
        return self.recipe.phases[-1]
