"""Prompts that hold in a part of the image, and masks in latent cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dpt.sampling.guidance import Denoiser

Mask = NDArray[np.bool_]
"""(height, width), in pixels."""


def regional(denoiser: Denoiser, regions: Sequence[tuple[Tensor, Denoiser]]) -> Denoiser:
    """The denoiser, replaced by others inside their masks (1,1,h,w); where masks overlap the last one counts.

    Raw network outputs are mixed. That is valid for every prediction type: at one t, outputs and x0 are related by the
    same linear map in each cell.
    """
    if not regions:
        return denoiser

    def mixed(x: Tensor, t: Tensor) -> Tensor:
        output = denoiser(x, t)
        for mask, other in regions:
            output = torch.where(mask > 0, other(x, t), output)
        return output

    return mixed


def to_cells(mask: Mask, factor: int, dilate: int = 0) -> Tensor:
    """(1,1,h,w): the latent cells with any pixel of the mask, dilated by whole cells.

    Any covered pixel counts, since a small object must not vanish between sampled pixels.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
    cells = F.max_pool2d(pixels, factor, ceil_mode=True)
    if dilate:
        cells = F.max_pool2d(cells, 2 * dilate + 1, stride=1, padding=dilate)
    return cells


def paste_back(source: Tensor, edited: Tensor, mask: Mask, feather: int) -> Tensor:
    """The edited image (3,H,W) inside the mask, the source from `feather` pixels away on, a ramp between."""
    from scipy.ndimage import distance_transform_edt

    distance = distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
    weight = torch.from_numpy(np.clip(1 - distance / max(feather, 1), 0, 1)).float()
    blended = weight * edited + (1 - weight) * source
    return torch.where(weight > 0, blended, source)
