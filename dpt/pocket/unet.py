"""The UNet of the pocket model, trained on latents of scenes under alt-text-like captions with caption dropout."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from dpt.data.scenes.captions import scene_caption
from dpt.data.scenes.world import Scene, World, make_scene
from dpt.distributed import Processes
from dpt.keyed_random import KeyedRandom
from dpt.pocket.clip import tokens
from dpt.pocket.recipe import Phase, UNetRecipe
from dpt.pocket.vae import pictures, row_noise

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
