"""Train the stages of the pocket model in order, each resumable, and write its diffusers folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers import __version__ as diffusers_version
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from dpt.claims.words import vocabulary
from dpt.data.scenes.world import WORLDS
from dpt.distributed import Processes
from dpt.errors import UserError
from dpt.pocket.clip import DEVIATION, END, MEAN, START, ClipStage
from dpt.pocket.training import Recipe, Schedule, Stage, train_stage
from dpt.pocket.unet import UNetStage, VaeStage, encode_scenes, pictures, whiten
from dpt.untrusted import read_json_object

KEPT = ("README.md",)

IMAGE_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 64},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 64, "width": 64},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": DEVIATION,
    "do_convert_rgb": True,
}


def assemble(out: Path, clip: ClipStage, text_encoder: CLIPTextModel, vae: AutoencoderKL, unet: UNetStage) -> None:
    forget_untrained_tokens(text_encoder, clip.tokenizer)
    parts = {
        "tokenizer": clip.tokenizer,
        "text_encoder": text_encoder,
        "vae": vae,
        "unet": unet.model,
        "scheduler": unet.scheduler,
    }
    with replace_folder(out) as fresh:
        with HalfPrecision(vae, text_encoder, unet.model, clip.model):
            for name, part in parts.items():
                part.save_pretrained(fresh / name)
            clip.model.save_pretrained(fresh / "clip")
        clip.tokenizer.save_pretrained(fresh / "clip")
        _write(fresh / "clip" / "preprocessor_config.json", IMAGE_PROCESSOR)
        _write(fresh / "model_index.json", _index(parts))
        for config in ("text_encoder/config.json", "clip/config.json"):
            declare_float32(fresh / config)


@contextmanager
def replace_folder(out: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `out` at the end; a model card already there is kept."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        fresh = Path(temporary) / out.name
        yield fresh
        for name in KEPT:
            if (out / name).exists():
                shutil.copy2(out / name, fresh / name)
        shutil.rmtree(out, ignore_errors=True)
        fresh.rename(out)


@torch.no_grad()
def forget_untrained_tokens(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Zero the embeddings of tokens that no caption uses, so that unknown words can be recognised."""
    used = {tokenizer.convert_tokens_to_ids(token) for token in (START, END)}
    for word in vocabulary():
        used.update(tokenizer(word, add_special_tokens=False).input_ids)
    table = text_encoder.get_input_embeddings().weight
    unused = [token for token in range(table.shape[0]) if token not in used]
    table[unused] = 0


class HalfPrecision:
    """Converts modules to half precision inside the block and back to float32 after it."""

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = modules

    def __enter__(self) -> None:
        for module in self.modules:
            module.half()

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            module.float()


def _index(parts: dict[str, Any]) -> dict[str, Any]:
    """The model_index.json of a StableDiffusionPipeline."""
    absent = {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
    classes = {name: [type(part).__module__.split(".")[0], type(part).__name__] for name, part in parts.items()}
    head = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers_version}
    return {**head, **classes, **absent, "requires_safety_checker": False}


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def declare_float32(config: Path) -> None:
    """The weights are stored in half precision for size only: set the dtype that they load in to float32."""
    content = read_json_object(config)
    for part in (content, content.get("text_config", {}), content.get("vision_config", {})):
        if "dtype" in part:
            part["dtype"] = "float32"
    _write(config, content)


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
