"""Reads images of rendered scenes back into objects, with classical vision and no learned weights.

It judges what a small diffusion model draws, so the rule is: what cannot be named without guessing is
`Unreadable`. An image becomes blobs (one colour, connected), each blob is fitted with every shape the
renderer knows, and the best shape, the colour and the size are named only if each is clear of its rivals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from dpt.claims.boxes import Box
from dpt.claims.detections import Detection, Detections, Unreadable
from dpt.data.scenes.world import FULL_WORLD, SIZES, World
from dpt.detect.base import Image
from dpt.detect.oracle.blobs import HALF, Background, Blob, TooBusy, find_background, find_blobs, squared_lengths
from dpt.detect.oracle.colours import DEFAULT, Thresholds, name_colour
from dpt.detect.oracle.fitting import Fit, bank, fit_shapes

Floats = NDArray[np.float32]


VERSION = 1

WINDOW_MARGIN = 6
"""Pixels around a blob's outline that the fit looks at."""

STRONGEST_COVER = 1.3


@dataclass(frozen=True)
class Oracle:
    """A `Detector` for the scenes of one world; shapes and colours of other worlds only are unreadable."""

    world: World = FULL_WORLD
    limits: Thresholds = DEFAULT

    @property
    def identity(self) -> str:
        settings = hashlib.sha256(f"{self.world}{self.limits}".encode()).hexdigest()[:12]
        return f"oracle v{VERSION} {settings}"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.world.shapes

    def detect(self, images: Sequence[Image], queries: Sequence[Sequence[str]] | None = None) -> list[Detections]:
        return [self.read(image) for image in images]

    def read(self, image: Image) -> Detections:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"an image is (height, width, 3) uint8, not {image.shape} {image.dtype}")
        height, width = image.shape[:2]
        if not height or not width:
            return Detections()
        smooth = _smoothed(image, self.limits.smoothing)
        ground = find_background(smooth, self.limits)
        everything = Box(0.0, 0.0, float(width), float(height))
        if ground.share < self.limits.background_share:
            return Detections(unreadable=(Unreadable(everything, "no plain background"),))
        if ground.noise > self.limits.noise:
            return Detections(unreadable=(Unreadable(everything, "too much noise"),))
        try:
            blobs = find_blobs(smooth, ground, self.limits)
        except TooBusy as reason:
            return Detections(unreadable=(Unreadable(everything, str(reason)),))
        return self._name_all(blobs, smooth, ground)

    def _name_all(self, blobs: list[Blob], smooth: Floats, ground: Background) -> Detections:
        largest = max(SIZES[size][1] for size in self.world.sizes) * self.limits.size_slack + 2
        regions: list[Detection | Unreadable] = []
        fitted, covers, corners = [], [], []
        for blob in blobs:
            cover, corner = _cover(blob, smooth, ground, int(largest) + 2 * WINDOW_MARGIN)
            if max(blob.box.width, blob.box.height) > largest:
                regions.append(Unreadable(blob.box, "larger than any object"))
            elif cover.max() <= HALF:
                regions.append(Unreadable(blob.box, "of more than one colour"))
            else:
                fitted.append(blob)
                covers.append(cover)
                corners.append(corner)
        if fitted:
            fits = fit_shapes(np.stack(covers), bank(self.limits.smoothing))
            for blob, fit, corner in zip(fitted, fits, corners, strict=True):
                regions.append(self._name(blob, fit, corner, smooth, ground))
        return Detections(
            tuple(region for region in regions if isinstance(region, Detection)),
            tuple(region for region in regions if isinstance(region, Unreadable)),
        )

    def _name(
        self, blob: Blob, fit: Fit, corner: tuple[int, int], smooth: Floats, ground: Background
    ) -> Detection | Unreadable:
        limits = self.limits
        contrast = float(np.linalg.norm(blob.contrast))
        noise = (ground.noise / contrast) ** 2
        misfits = np.sqrt(np.maximum(fit.residuals - noise, 0) / fit.powers)
        best, second = (int(i) for i in np.argsort(misfits)[:2])
        shapes = bank(limits.smoothing).shapes
        x0, y0, x1, y1 = (float(v) for v in fit.boxes[best])
        box = Box(x0 + corner[0], y0 + corner[1], x1 + corner[0], y1 + corner[1])

        ratio = float(misfits[second] / max(misfits[best], limits.margin_floor))
        if misfits[best] > limits.misfit:
            return Unreadable(blob.box, f"no known shape, {shapes[best]} the nearest")
        if ratio < limits.margin:
            return Unreadable(blob.box, f"a shape between {shapes[best]} and {shapes[second]}")
        if not 1 / limits.aspect <= box.width / box.height <= limits.aspect:
            return Unreadable(blob.box, f"a stretched {shapes[best]}")
        if shapes[best] not in self.world.shapes:
            return Unreadable(blob.box, f"a {shapes[best]}, which this world does not have")
        size = self._size((box.width + box.height) / 2)
        if size is None:
            return Unreadable(blob.box, "of no known size")
        if _impurity(blob, smooth, ground) > limits.impurity:
            return Unreadable(blob.box, "of more than one colour")
        colour, sureness, why = name_colour(ground.colour + blob.contrast * fit.strengths[best], limits)
        if colour is None:
            return Unreadable(blob.box, why)
        if colour not in self.world.colours:
            return Unreadable(blob.box, f"{colour}, which this world does not have")
        slack = min(1 - float(misfits[best]) / limits.misfit, 1 - limits.margin / ratio, sureness)
        return Detection(shapes[best], box, 0.5 + 0.5 * max(0.0, slack), colour, size)

    def _size(self, width: float) -> str | None:
        sizes = sorted((SIZES[size], size) for size in self.world.sizes)
        lowest, highest = sizes[0][0][0] / self.limits.size_slack, sizes[-1][0][1] * self.limits.size_slack
        if not lowest <= width <= highest:
            return None
        for ((_, under), size), ((over, _), _) in pairwise(sizes):
            doubt = (over - under) * self.limits.size_gap / 2
            middle = (under + over) / 2
            if width < middle - doubt:
                return size
            if width <= middle + doubt:
                return None
        return sizes[-1][1]


def _smoothed(image: Image, sigma: float) -> Floats:
    rows = gaussian_filter1d(image.astype(np.float32), sigma, axis=0, mode="nearest", truncate=3.0)
    return gaussian_filter1d(rows, sigma, axis=1, mode="nearest", truncate=3.0)


def _cover(blob: Blob, smooth: Floats, ground: Background, side: int) -> tuple[Floats, tuple[int, int]]:
    """How much of each pixel the blob covers, in a (side, side) window, and the window's corner (x, y)."""
    x0 = max(0, int(blob.box.x0) - WINDOW_MARGIN)
    y0 = max(0, int(blob.box.y0) - WINDOW_MARGIN)
    window = (slice(y0, y0 + side), slice(x0, x0 + side))
    along = (smooth[window] - ground.colour) @ blob.contrast / np.maximum(blob.contrast @ blob.contrast, 1e-6)
    inside = np.where(blob.own[window], np.clip(along, 0, STRONGEST_COVER), 0)
    cover = np.zeros((side, side), np.float32)
    cover[: inside.shape[0], : inside.shape[1]] = inside
    return cover, (x0, y0)


def _impurity(blob: Blob, smooth: Floats, ground: Background) -> float:
    """RMS distance of the pixels from the line between background and blob colour, relative to the contrast."""
    rows = slice(int(blob.box.y0), int(blob.box.y1))
    columns = slice(int(blob.box.x0), int(blob.box.x1))
    difference = (smooth[rows, columns] - ground.colour)[blob.own[rows, columns]]
    power = float(blob.contrast @ blob.contrast)
    along = difference @ blob.contrast / power
    aside = difference - along[:, None] * blob.contrast
    inner = along > 0.7
    if not inner.any():
        return 1.0
    scatter = float(squared_lengths(aside[inner]).mean()) - 2 * ground.noise**2
    return float(np.sqrt(max(scatter, 0.0) / power))
