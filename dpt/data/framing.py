"""From a picture of any size to a square tensor, its boxes with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dpt.data.example import BoxCentre, BoxCorners
from dpt.data.pictures import Size

PREPROCESSING = 1
"""To be raised when the same picture file comes to give other pixels, since caches hold what was made of them."""

LEAST_IN_VIEW = 0.5
"""A box of which a smaller share of the area is left in the crop is lost, and its region is dropped."""


@dataclass(frozen=True)
class Framing:
    """The whole picture squashed to a square (as published), or the largest square in its middle."""

    resolution: int
    center_crop: bool = False
    random_flip: bool = False

    def window(self, size: Size) -> BoxCorners:
        """The part of the picture that is shown, in pixels."""
        width, height = size
        if not self.center_crop:
            return 0, 0, width, height
        side = min(width, height)
        x0, y0 = (width - side) // 2, (height - side) // 2
        return x0, y0, x0 + side, y0 + side

    def pixels(self, image: Image.Image) -> Tensor:
        """(3, resolution, resolution) in [-1, 1]."""
        window = self.window(image.size)
        square = (self.resolution, self.resolution)
        if image.size != square:
            image = image.resize(square, Image.Resampling.BICUBIC, box=window)
        values = torch.from_numpy(np.array(image, dtype=np.float32))
        return values.permute(2, 0, 1).contiguous() / 127.5 - 1

    def box(self, box: BoxCorners, size: Size) -> BoxCentre | None:
        """The part of a box that is in view, as shares of the view; None if the box is lost."""
        left, top, right, bottom = self.window(size)
        x0, x1 = max(box[0], left), min(box[2], right)
        y0, y1 = max(box[1], top), min(box[3], bottom)
        area = (box[2] - box[0]) * (box[3] - box[1])
        if x1 <= x0 or y1 <= y0 or (x1 - x0) * (y1 - y0) < LEAST_IN_VIEW * area:
            return None
        width, height = right - left, bottom - top
        return (
            ((x0 + x1) / 2 - left) / width,
            ((y0 + y1) / 2 - top) / height,
            (x1 - x0) / width,
            (y1 - y0) / height,
        )
