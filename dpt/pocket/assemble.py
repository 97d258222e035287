"""Trained parts to the ordinary diffusers folder, in half precision, all or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import nn
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer

from dpt.data.scenes.words import vocabulary
from dpt.pocket.clip import DEVIATION, MEAN, ClipStage
from dpt.pocket.tokenizer import END, START
from dpt.pocket.unet import UNetStage

KEPT = ("README.md",)


def assemble(out: Path, clip: ClipStage, text_encoder: CLIPTextModel, vae: AutoencoderKL, unet: UNetStage) -> None:
    forget_untrained_tokens(text_encoder, clip.tokenizer)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=clip.tokenizer,
        unet=unet.model,
        scheduler=unet.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        fresh = Path(temporary) / out.name
        with _rounded(vae, text_encoder, unet.model, clip.model):
            pipeline.save_pretrained(fresh)
            clip.model.save_pretrained(fresh / "clip")
        clip.tokenizer.save_pretrained(fresh / "clip")
        _image_processor().save_pretrained(fresh / "clip")
        for config in ("text_encoder/config.json", "clip/config.json"):
            _say_float32(fresh / config)
        for name in KEPT:
            if (out / name).exists():
                shutil.copy2(out / name, fresh / name)
        shutil.rmtree(out, ignore_errors=True)
        fresh.rename(out)


@torch.no_grad()
def forget_untrained_tokens(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Zero the embeddings of tokens that no caption ever used, so that a reader can tell unknown words."""
    seen = {tokenizer.convert_tokens_to_ids(token) for token in (START, END)}
    for word in vocabulary():
        seen.update(tokenizer(word, add_special_tokens=False).input_ids)
    table = text_encoder.get_input_embeddings().weight
    unseen = [token for token in range(table.shape[0]) if token not in seen]
    table[unseen] = 0


class _rounded:
    """Modules in half precision inside the block, as they were outside."""

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = modules

    def __enter__(self) -> None:
        for module in self.modules:
            module.half()

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            module.float()


def _image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=list(MEAN),
        image_std=list(DEVIATION),
    )


def _say_float32(config: Path) -> None:
    """The weights are stored in half precision to be small; they are meant to be used in single precision."""
    content = json.loads(config.read_text())
    for part in (content, content.get("text_config", {}), content.get("vision_config", {})):
        if "dtype" in part:
            part["dtype"] = "float32"
    config.write_text(json.dumps(content, indent=2) + "\n")


