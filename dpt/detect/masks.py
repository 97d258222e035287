"""Segmentation masks of detected objects: the Segmenter protocol, boxes, ellipses, and the oracle's masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dpt.claims.boxes import Box, overlap
from dpt.detect.base import Image
from dpt.detect.oracle.blobs import TooBusy, find_background, find_blobs, squared_lengths
from dpt.detect.oracle.colours import DEFAULT, Thresholds

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
    from dpt.detect.sam import open_sam

    return open_sam(name, device)
