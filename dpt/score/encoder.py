"""Image encoders for distances between sets of images: CLIP, SigLIP, DINOv2, DINOv3, and timm's models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch import Tensor

from dpt.backbone.device import resolve_device
from dpt.backbone.hf_model import open_hf_model
from dpt.detect.base import Image
from dpt.errors import UserError
from dpt.score.clip import BATCH_SIZE, Clip
from dpt.untrusted import read_json_object

TIMM = "timm:"

KINDS = ("clip", "siglip", "dinov2", "dinov2_with_registers", "dinov3_vit")

LARGEST_SIDE = 4096
"""Pixels of an encoder's input."""


class ImageEncoder(Protocol):
    @property
    def identity(self) -> str: ...

    def features(self, images: Sequence[Image]) -> NDArray[np.float64]:
        """A row of features per image, not normalised."""
        ...


def open_encoder(name: str, device: str | None = None) -> ImageEncoder:
    """A folder or hub id of transformers, or timm:NAME."""
    if name.startswith(TIMM):
        return _open_timm(name.removeprefix(TIMM), device)
    folder = open_hf_model(name, KINDS, "vision encoder")
    if folder.model_type == "clip":
        return Clip.open(name, device)
    from transformers import AutoModel

    model = folder.load(AutoModel).eval().to(resolve_device(device))
    try:
        preparation = Preparation.of(read_json_object(folder.path / "preprocessor_config.json"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder.name} has no preprocessor_config.json with size, image_mean and image_std") from None
    return VisionEncoder(model, preparation, f"{folder.model_type} {folder.identity}")


@dataclass(frozen=True)
class Preparation:
    """Resize the shorter side, crop the middle, normalise. The same for every encoder here."""

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, config: dict[str, Any]) -> Preparation:
        """From a preprocessor_config.json."""
        size, crop = config["size"], config.get("crop_size")
        resize = size if isinstance(size, int) else size.get("shortest_edge", size.get("height"))
        side = crop if isinstance(crop, int) else (crop or {}).get("height", resize)
        if not (config.get("do_center_crop", crop is not None)):
            side = resize
        mean, std = tuple(map(float, config["image_mean"])), tuple(map(float, config["image_std"]))
        if not (0 < side <= resize <= LARGEST_SIDE and len(mean) == len(std) == 3 and min(std) > 0):
            raise ValueError
        return cls(int(resize), int(side), mean, std)

    def __call__(self, images: Sequence[Image]) -> Tensor:
        pixels = np.stack([self._framed(image) for image in images]).astype(np.float32) / 255
        normal = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(normal).permute(0, 3, 1, 2).contiguous()

    def _framed(self, image: Image) -> Image:
        height, width = image.shape[:2]
        scale = self.resize / min(height, width)
        size = max(self.crop, round(width * scale)), max(self.crop, round(height * scale))
        resized = np.asarray(PILImage.fromarray(image).resize(size, PILImage.Resampling.BICUBIC))
        top, left = (size[1] - self.crop) // 2, (size[0] - self.crop) // 2
        return resized[top : top + self.crop, left : left + self.crop]


@dataclass(frozen=True)
class VisionEncoder:
    """The pooled output of a transformers or timm model."""

    model: Any
    preparation: Preparation
    identity: str

    def features(self, images: Sequence[Image]) -> NDArray[np.float64]:
        parts = [self._pooled(images[start : start + BATCH_SIZE]) for start in range(0, len(images), BATCH_SIZE)]
        features: NDArray[np.float64] = torch.cat(parts).cpu().double().numpy()
        return features

    @torch.no_grad()
    def _pooled(self, images: Sequence[Image]) -> Tensor:
        pixels = self.preparation(images).to(next(self.model.parameters()).device)
        if hasattr(self.model, "get_image_features"):
            pooled: Tensor = self.model.get_image_features(pixel_values=pixels).pooler_output
            return pooled.float()
        output = self.model(pixels)
        pooled = output if isinstance(output, Tensor) else output.pooler_output
        return pooled.float()


def _open_timm(name: str, device: str | None) -> ImageEncoder:
    try:
        import timm
    except ImportError:
        raise UserError(f"{TIMM}{name} needs timm, which is not installed: pip install timm") from None
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
        config = timm.data.resolve_model_data_config(model)
    # Unknown names and failed downloads raise errors of several libraries.
    except Exception as error:
        raise UserError(f"timm cannot open {name}: {error}") from None
    side = int(config["input_size"][-1])
    resize = max(side, round(side / float(config.get("crop_pct", 1.0))))
    preparation = Preparation(resize, side, tuple(config["mean"]), tuple(config["std"]))
    return VisionEncoder(model.eval().to(resolve_device(device)), preparation, f"timm {name}")
