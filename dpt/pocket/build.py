"""All stages of the pocket's making, in order, each resumable; then the ordinary diffusers folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel

from dpt.data.scenes.world import WORLDS
from dpt.errors import UserError
from dpt.files import atomic_file
from dpt.pocket.assemble import assemble
from dpt.pocket.clip import ClipStage
from dpt.pocket.loop import Stage, run
from dpt.pocket.recipe import Recipe, Schedule
from dpt.pocket.unet import UNetStage, encode_scenes
from dpt.pocket.vae import VaeStage, pictures, whiten
from dpt.pocket.workers import Workers
from dpt.records import to_plain
from dpt.untrusted import parse_json

STAGES = ("clip", "vae", "unet")

WHITENING_SCENES = 512


def build(
    recipe: Recipe,
    work: Path,
    out: Path,
    until: float | None,
    last: str,
    device: str,
    workers: Workers,
    start: Path | None = None,
) -> bool:
    """Train what is not trained yet, up to the stage `last` and the clock time `until`.

    Writes `out` once there is a denoiser. True when all that was asked has come to its end. With the folder of a
    finished model as `start` its CLIP and VAE are kept, and its denoiser is trained further.
    """
    world = WORLDS[recipe.world]
    clip_stage = ClipStage(recipe.text, world, recipe.seed, device)
    vae_stage = VaeStage(recipe.vae, world, recipe.seed, device)
    if start is None:
        complete = _train_alone(clip_stage, recipe.text.schedule, recipe.text, work, until, workers)
        if not complete or last == "clip":
            return complete
        complete = _train_alone(vae_stage, recipe.vae.schedule, recipe.vae, work, until, workers)
        if not complete or last == "vae":
            return complete
        whiten(vae_stage.model, pictures(vae_stage.world, recipe.seed + 1, 0, WHITENING_SCENES))
    else:
        take_over(start / "clip", CLIPModel, clip_stage)
        take_over(start / "vae", AutoencoderKL, vae_stage)
    text_encoder = text_tower(clip_stage.model)
    latents = encode_scenes(vae_stage.model, world, recipe.seed, recipe.unet.latents, work / "latents", workers)
    unet_stage = UNetStage(recipe.unet, world, recipe.seed, latents, text_encoder, clip_stage.tokenizer)
    if start is not None:
        take_over(start / "unet", UNet2DConditionModel, unet_stage)
    complete = _train(unet_stage, recipe.unet.schedule, recipe.unet, work, until, workers)
    if workers.first:
        assemble(out, clip_stage, text_encoder, vae_stage.model, unet_stage)
    return complete


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    tower = CLIPTextModel(clip.config.text_config)
    inner = getattr(tower, "text_model", tower)
    inner.load_state_dict(clip.text_model.state_dict())
    return tower.to(clip.device).eval().requires_grad_(False)


def take_over(folder: Path, kind: Any, stage: Stage) -> None:
    """Give the stage's model the weights of a finished one."""
    try:
        finished = kind.from_pretrained(folder, local_files_only=True).float()
        stage.model.load_state_dict(finished.state_dict())
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        raise UserError(f"cannot go on from {folder}, which is not what the recipe describes: {why}") from error


def _train_alone(
    stage: Stage, schedule: Schedule, part: Any, work: Path, until: float | None, workers: Workers
) -> bool:
    """By the first worker; the others wait and then read what it made."""
    if not workers.first:
        workers.wait()
    complete = _train(stage, schedule, part, work, until, Workers())
    if workers.first:
        workers.wait()
    return complete


def _train(stage: Stage, schedule: Schedule, part: Any, work: Path, until: float | None, workers: Workers) -> bool:
    folder = work / stage.name
    _claim(folder, to_plain(part))
    return run(stage, schedule, folder, until, workers)


def _claim(folder: Path, part: dict[str, Any]) -> None:
    """A stage's folder belongs to the recipe it was begun with; only its length may change."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record = folder / "recipe.json"
        if record.exists():
            begun = parse_json(record.read_text())
            begun["schedule"]["steps"] = part["schedule"]["steps"]
            if begun != part:
                raise UserError(f"{folder} was begun with another recipe; give another --work folder or its own recipe")
        else:
            with atomic_file(record) as work:  # the workers all claim it: none may read half of it
                work.write_text(json.dumps(part, indent=1))
    except OSError as error:
        raise UserError(f"cannot write the work folder {folder}: {error.strerror}") from error
