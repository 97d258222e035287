"""Between tensors in [-1,1] and pictures of 8 bits."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_picture(image: Tensor) -> Image.Image:
    """An image (3,H,W) in [-1,1], clipped and rounded as diffusers does it."""
    levels = ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as an image (3,H,W) in [-1,1]."""
    levels = torch.from_numpy(np.array(picture.convert("RGB")))
    return levels.permute(2, 0, 1).float() / 127.5 - 1
