"""Segmentation masks of detected objects: boxes, ellipses, the oracle's masks, SAM and SAM 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from dpt.backbone.device import resolve_device
from dpt.backbone.opening import open_hf_model
from dpt.claims.facts import Box, overlap
from dpt.detect.base import Image
from dpt.detect.oracle.blobs import DEFAULT, Thresholds, TooBusy, find_background, find_blobs, squared_lengths
from dpt.errors import UserError

Mask = NDArray[np.bool_]
"""(height, width)"""


class Segmenter(Protocol):
    @property
    def identity(self) -> str: ...

    def masks(self, image: Image, boxes: Sequence[Box]) -> list[Mask]:
        """A mask per box, in pixels of the image; never empty for a box that lies inside it."""
        ...


def box_mask(box: Box, height: int, width: int) -> Mask:
    """Every pixel that the box touches."""
    mask = np.zeros((height, width), bool)
    rows = slice(max(0, int(np.floor(box.y0))), max(0, int(np.ceil(box.y1))))
    columns = slice(max(0, int(np.floor(box.x0))), max(0, int(np.ceil(box.x1))))
    mask[rows, columns] = True
    return mask


def ellipse_mask(box: Box, height: int, width: int) -> Mask:
    """The pixels of the ellipse inside the box."""
    (x, y), a, b = box.centre, max(box.width / 2, 0.5), max(box.height / 2, 0.5)
    columns, rows = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    return ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 <= 1


def dilated(mask: Mask, pixels: int) -> Mask:
    """Grown by whole pixels in all eight directions."""
    if pixels < 1 or not mask.any():
        return mask
    return np.asarray(ndimage.binary_dilation(mask, np.ones((3, 3), bool), iterations=pixels))


class BoxSegmenter:
    """The box itself, or the ellipse in it: needs no model."""

    def __init__(self, shape: Literal["box", "ellipse"] = "box") -> None:
        self.shape = shape

    @property
    def identity(self) -> str:
        return self.shape

    def masks(self, image: Image, boxes: Sequence[Box]) -> list[Mask]:
        height, width = image.shape[:2]
        if self.shape == "box":
            return [box_mask(box, height, width) for box in boxes]
        ellipses = [ellipse_mask(box, height, width) for box in boxes]
        return [
            ellipse if ellipse.any() else box_mask(box, height, width)
            for ellipse, box in zip(ellipses, boxes, strict=True)
        ]


SMALLEST_OVERLAP = 0.1
"""IoU of box and blob below which the box itself is the mask."""


class OracleSegmenter:
    """The pixels of rendered objects, by the oracle's segmentation."""

    def __init__(self, limits: Thresholds = DEFAULT) -> None:
        self.limits = limits

    @property
    def identity(self) -> str:
        return "oracle masks"

    def masks(self, image: Image, boxes: Sequence[Box]) -> list[Mask]:
        height, width = image.shape[:2]
        smooth = np.asarray(ndimage.gaussian_filter(image.astype(np.float32), (1, 1, 0), mode="nearest", truncate=3.0))
        ground = find_background(smooth, self.limits)
        try:
            blobs = find_blobs(smooth, ground, self.limits)
        except TooBusy:
            blobs = []
        visible = np.sqrt(squared_lengths(smooth - ground.colour)) > self.limits.visible
        masks = []
        for box in boxes:
            ranked = sorted(blobs, key=lambda blob: -overlap(blob.box, box))
            if ranked and overlap(ranked[0].box, box) >= SMALLEST_OVERLAP:
                masks.append(dilated(ranked[0].own & visible, 1) & ranked[0].own)
            else:
                masks.append(box_mask(box, height, width))
        return masks


def open_segmenter(name: str, device: str | None = None) -> Segmenter:
    """oracle, box, ellipse, or the folder or hub id of a SAM or SAM 2 model."""
    if name == "oracle":
        return OracleSegmenter()
    if name in ("box", "ellipse"):
        return BoxSegmenter("box" if name == "box" else "ellipse")

    return open_sam(name, device)


SAM_TYPES = ("sam", "sam2")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

BOX_MARGIN = 0.1
"""How far a mask may reach past its box, as a share of the box's sides."""


@dataclass(frozen=True)
class SamSegmenter:
    model: Any
    identity: str
    stretched: bool
    """Whether the image is stretched to the model's square (SAM 2) or padded to it (SAM)."""

    @property
    def side(self) -> int:
        return int(self.model.config.prompt_encoder_config.image_size)

    @torch.no_grad()
    def masks(self, image: Image, boxes: Sequence[Box]) -> list[Mask]:
        """The image is encoded once for all boxes."""
        if not boxes:
            return []
        height, width = image.shape[:2]
        rows, columns = self._scaled_size(height, width)
        pixels = self._pixels(image, rows, columns).to(self.model.device)
        scale = torch.tensor([columns / width, rows / height] * 2)
        corners = torch.tensor([[box.x0, box.y0, box.x1, box.y1] for box in boxes]) * scale
        out = self.model(pixel_values=pixels, input_boxes=corners[None].to(pixels), multimask_output=True)
        scores, logits = out.iou_scores[0].float().cpu(), out.pred_masks[0].float().cpu()
        if not (torch.isfinite(scores).all() and torch.isfinite(logits).all()):
            raise UserError(f"{self.identity} returned NaN or infinite masks")
        best = logits[torch.arange(len(boxes)), scores.argmax(-1)]
        full = F.interpolate(best[:, None], (self.side, self.side), mode="bilinear", align_corners=False)
        own = F.interpolate(full[:, :, :rows, :columns], (height, width), mode="bilinear", align_corners=False)
        return [_within(np.asarray(mask[0] > 0), box) for mask, box in zip(own, boxes, strict=True)]

    def _scaled_size(self, height: int, width: int) -> tuple[int, int]:
        if self.stretched:
            return self.side, self.side
        scale = self.side / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _pixels(self, image: Image, rows: int, columns: int) -> Tensor:
        values = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[None] / 255
        values = F.interpolate(values, (rows, columns), mode="bilinear", align_corners=False, antialias=True)
        values = (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        return F.pad(values, (0, self.side - columns, 0, self.side - rows))


def _within(mask: Mask, box: Box) -> Mask:
    """The mask near its box; the box itself if nothing is left."""
    height, width = mask.shape
    whole = box_mask(box, height, width)
    near = dilated(whole, round(BOX_MARGIN * max(box.width, box.height)))
    return mask & near if (mask & near).any() else whole


def open_sam(name: str, device: str | None = None) -> SamSegmenter:
    """`name`: a folder or hub id of a SAM or SAM 2 model."""
    from transformers import Sam2Model, SamModel

    folder = open_hf_model(name, SAM_TYPES, "segmentation model")
    version_2 = folder.model_type == "sam2"
    model = folder.load(Sam2Model if version_2 else SamModel).eval().to(resolve_device(device))
    return SamSegmenter(model, folder.identity, stretched=version_2)
