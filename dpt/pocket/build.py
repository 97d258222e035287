"""All stages of the pocket's making, in order, each resumable; then the ordinary diffusers folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CLIPModel, CLIPTextModel

from dpt.data.scenes.world import WORLDS
from dpt.errors import UserError
from dpt.pocket.assemble import assemble
from dpt.pocket.clip import ClipStage
from dpt.pocket.loop import Stage, run
from dpt.pocket.recipe import Recipe, Schedule
from dpt.pocket.unet import UNetStage, encode_scenes
from dpt.pocket.vae import VaeStage, pictures, whiten
from dpt.pocket.workers import Workers
from dpt.records import to_plain

STAGES = ("clip", "vae", "unet")
WHITENING_SCENES = 512


def build(
    recipe: Recipe, work: Path, out: Path, until: float | None, last: str, device: str, workers: Workers
) -> bool:
    """Train what is not trained yet, up to the stage `last` and the clock time `until`.

    Writes `out` once there is a denoiser. True when all that was asked has come to its end.
    """
    world = WORLDS[recipe.world]
    clip_stage = ClipStage(recipe.text, world, recipe.seed, device)
    complete = _train_alone(clip_stage, recipe.text.schedule, recipe.text, work, until, workers)
    if not complete or last == "clip":
        return complete
    vae_stage = VaeStage(recipe.vae, world, recipe.seed, device)
    complete = _train_alone(vae_stage, recipe.vae.schedule, recipe.vae, work, until, workers)
    if not complete or last == "vae":
        return complete
    whiten(vae_stage.model, pictures(vae_stage.world, recipe.seed + 1, 0, WHITENING_SCENES))
    text_encoder = text_tower(clip_stage.model)
    latents = encode_scenes(vae_stage.model, world, recipe.seed, recipe.unet.latents, work / "latents", workers)
    unet_stage = UNetStage(recipe.unet, world, recipe.seed, latents, text_encoder, clip_stage.tokenizer)
    complete = _train(unet_stage, recipe.unet.schedule, recipe.unet, work, until, workers)
    if workers.first:
        assemble(out, clip_stage, text_encoder, vae_stage.model, unet_stage)
    return complete


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    tower = CLIPTextModel(clip.config.text_config)
    inner = getattr(tower, "text_model", tower)
    inner.load_state_dict(clip.text_model.state_dict())
    return tower.to(clip.device).eval().requires_grad_(False)


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
            begun = json.loads(record.read_text())
            begun["schedule"]["steps"] = part["schedule"]["steps"]
            if begun != part:
                raise UserError(f"{folder} was begun with another recipe; give another --work folder or its own recipe")
        else:
            record.write_text(json.dumps(part, indent=1))
    except OSError as error:
        raise UserError(f"cannot write the work folder {folder}: {error.strerror}") from error
