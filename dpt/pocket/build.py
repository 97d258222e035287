"""Train the stages of the pocket model in order, each resumable, and write its diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel

from dpt.data.scenes.world import WORLDS
from dpt.distributed import Processes
from dpt.errors import UserError
from dpt.pocket.assemble import assemble
from dpt.pocket.clip import ClipStage
from dpt.pocket.recipe import Recipe, Schedule
from dpt.pocket.training import Stage, train_stage
from dpt.pocket.unet import UNetStage, encode_scenes
from dpt.pocket.vae import VaeStage, pictures, whiten

STAGES = ("clip", "vae", "unet")

WHITENING_SCENES = 512


def build(
    recipe: Recipe,
    work: Path,
    out: Path,
    until: float | None,
    last: str,
    device: str,
    processes: Processes,
    start: Path | None = None,
) -> bool:
    """Train the stages up to `last`, until the clock time `until`; returns whether they are complete.

    Writes `out` once there is a UNet. `start`, the folder of a finished model, keeps its CLIP and VAE and trains its
    UNet further.
    """
    world = WORLDS[recipe.world]
    clip_stage = ClipStage(recipe.text, world, recipe.seed, device)
    vae_stage = VaeStage(recipe.vae, world, recipe.seed, device)
    if start is None:
        complete = train_alone(clip_stage, recipe.text.schedule, recipe.text, work, until, processes)
        if not complete or last == "clip":
            return complete
        complete = train_alone(vae_stage, recipe.vae.schedule, recipe.vae, work, until, processes)
        if not complete or last == "vae":
            return complete
        whiten(vae_stage.model, pictures(vae_stage.world, recipe.seed + 1, 0, WHITENING_SCENES))
    else:
        load_weights(start / "clip", CLIPModel, clip_stage)
        load_weights(start / "vae", AutoencoderKL, vae_stage)
    text_encoder = text_tower(clip_stage.model)
    latents = encode_scenes(vae_stage.model, world, recipe.seed, recipe.unet.latents, work / "latents", processes)
    unet_stage = UNetStage(recipe.unet, world, recipe.seed, latents, text_encoder, clip_stage.tokenizer)
    if start is not None:
        load_weights(start / "unet", UNet2DConditionModel, unet_stage)
    folder = work / unet_stage.name
    complete = train_stage(unet_stage, recipe.unet.schedule, recipe.unet, folder, until, processes)
    if processes.is_main:
        assemble(out, clip_stage, text_encoder, vae_stage.model, unet_stage)
    return complete


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    tower = CLIPTextModel(clip.config.text_config)
    inner = getattr(tower, "text_model", tower)
    inner.load_state_dict(clip.text_model.state_dict())
    return tower.to(clip.device).eval().requires_grad_(False)


def load_weights(folder: Path, kind: Any, stage: Stage) -> None:
    """Load the weights of a finished model into the stage's."""
    try:
        finished = kind.from_pretrained(folder, local_files_only=True).float()
        stage.model.load_state_dict(finished.state_dict())
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot start from {folder}, which is not what the recipe describes: {reason}") from error


def train_alone(
    stage: Stage, schedule: Schedule, recipe: Any, work: Path, until: float | None, processes: Processes
) -> bool:
    """By the main process; the others wait and then load the result.

    The contrastive batch of the CLIP cannot be split, and the VAE is trained in minutes.
    """
    if not processes.is_main:
        processes.barrier()
    complete = train_stage(stage, schedule, recipe, work / stage.name, until)
    if processes.is_main:
        processes.barrier()
    return complete
