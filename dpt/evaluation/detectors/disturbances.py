"""What happens to pictures: noise, blur, compression, drifting colours; functions of (image, seed)."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

from dpt.evaluation.detectors.base import Image

Disturbance = Callable[[Image, int], Image]


def noise(sigma: float) -> Disturbance:
    return lambda image, seed: _image(image + np.random.default_rng(seed).normal(0, sigma, image.shape))


def blur(sigma: float) -> Disturbance:
    return lambda image, seed: _image(gaussian_filter(image.astype(np.float32), (sigma, sigma, 0)))


def jpeg(quality: int) -> Disturbance:
    def compress(image: Image, seed: int) -> Image:
        file = io.BytesIO()
        Pillow.fromarray(image).save(file, "jpeg", quality=quality)
        return np.array(Pillow.open(file).convert("RGB"))

    return compress


def colour_shift(levels: int) -> Disturbance:
    """Each channel of the whole image moves by its own amount, up or down by the given levels at most."""

    def shift(image: Image, seed: int) -> Image:
        return _image(image + np.random.default_rng(seed).uniform(-levels, levels, 3))

    return shift


def brightness(gain: float) -> Disturbance:
    return lambda image, seed: _image(image * gain)


DISTURBANCES: dict[str, Disturbance] = {
    "clean": lambda image, seed: image,
    "noise 8": noise(8),
    "noise 16": noise(16),
    "blur 0.6": blur(0.6),
    "blur 0.8": blur(0.8),
    "blur 1.0": blur(1.0),
    "jpeg 90": jpeg(90),
    "jpeg 75": jpeg(75),
    "jpeg 50": jpeg(50),
    "colour ±12": colour_shift(12),
    "brightness 0.8": brightness(0.8),
    "brightness 1.2": brightness(1.2),
}


def _image(values: np.ndarray) -> Image:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
