"""Similarity of images and texts by CLIP, and image encoders for distances between sets of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from dpt.backbone.device import resolve_device
from dpt.backbone.opening import open_hf_model
from dpt.detect.base import Image
from dpt.errors import UserError
from dpt.untrusted import read_json_object

BATCH_SIZE = 16

CHANNELS_LAST = "channels_last"
"""Passed explicitly: the processor would take an image three pixels high for a channels-first one."""


@dataclass(frozen=True)
class Clip:
    model: Any
    processor: Any
    tokenizer: Any
    identity: str

    @classmethod
    def open(cls, name: str, device: str | None = None) -> Clip:
        folder = open_hf_model(name, ("clip",), "CLIP")
        model = folder.load(CLIPModel).eval().to(resolve_device(device))
        return cls(model, folder.load(CLIPImageProcessorPil), folder.load(CLIPTokenizer), f"CLIP {folder.identity}")

    def cosine(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """Return the cosine similarity of each image with the text at the same index."""
        similarity = (self._images(images) * self._texts(texts)).sum(-1)
        return [float(value) for value in similarity]

    def nearest(self, images: Sequence[Image], texts: Sequence[str]) -> list[int]:
        """Return the index of the most similar text for each image."""
        return [int(i) for i in (self._images(images) @ self._texts(texts).T).argmax(-1)]

    def features(self, images: Sequence[Image]) -> NDArray[np.float64]:
        """Return the projected image features (n,width), not normalised."""
        with torch.no_grad():
            parts = [self._projected(images[start : start + BATCH_SIZE]) for start in range(0, len(images), BATCH_SIZE)]
        features: NDArray[np.float64] = torch.cat(parts).cpu().double().numpy()  # mps has no float64
        return features

    def count_truncated(self, texts: Sequence[str]) -> int:
        """Count the texts that are longer than the context and are truncated."""
        return sum(len(ids) > self._length for ids in self.tokenizer(list(texts)).input_ids)

    @property
    def _length(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    def _images(self, images: Sequence[Image]) -> Tensor:
        with torch.no_grad():
            return F.normalize(self._projected(images), dim=-1)

    def _projected(self, images: Sequence[Image]) -> Tensor:
        pixels = self.processor(list(images), return_tensors="pt", input_data_format=CHANNELS_LAST).pixel_values
        projected: Tensor = self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output
        return projected.float()

    def _texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
        ).to(self.model.device)
        with torch.no_grad():
            out = self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return F.normalize(out.pooler_output.float(), dim=-1)


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
