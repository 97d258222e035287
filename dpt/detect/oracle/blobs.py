"""Segments an image into blobs: connected regions of one colour that stand out from a plain background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dpt.claims.boxes import Box
from dpt.detect.oracle.colours import Thresholds, nearest_colours

Floats = NDArray[np.float32]

Mask = NDArray[np.bool_]

Labels = NDArray[np.intp]


NEIGHBOURHOOD = 7
"""Pixels across which a local maximum of contrast is taken: wider than a stroke, narrower than an object."""

CORE = 0.85
"""Share of the local maximum from which a pixel shows its object's colour, unmixed with the background."""

HALF = 0.5
"""Share of the local maximum at which an object's outline runs."""

RULING_SHARE = 0.8
"""A colour that holds this share of a blob's core rules all of it; the rest is fringe."""

FRINGE_SHARE = 0.3
"""Patches under this share of a blob's largest patch are fringe where two colours meet."""

REACH = 4.0
"""How far beyond its outline a blob's own pixels extend."""


class TooBusy(Exception):
    """The image has more regions than a scene can have."""


@dataclass(frozen=True)
class Background:
    """The plain background: its colour, the noise on it per channel, the share of the image it fills."""

    colour: Floats
    noise: float
    share: float


@dataclass(frozen=True)
class Blob:
    box: Box
    area: float
    peak: float
    """Contrast of its strongest pixels."""
    contrast: Floats
    """(3,): its colour's difference to the background, measured in its core."""
    own: Mask
    """The image's pixels that are this blob's and no other's, background around it included."""


def find_background(smooth: Floats, limits: Thresholds) -> Background:
    """`smooth`: (height, width, 3)."""
    border = np.concatenate([smooth[0], smooth[-1], smooth[:, 0], smooth[:, -1]])
    colour = np.median(border, axis=0)
    noise = np.inf
    for _ in range(2):
        near = squared_lengths(smooth - colour) < limits.background_spread**2
        pixels = smooth[near]
        if not len(pixels):
            break
        colour = pixels.mean(0)
        noise = float(np.sqrt(squared_lengths(pixels - colour).mean() / 3))
    return Background(colour.astype(np.float32), noise, len(pixels) / near.size)


def squared_lengths(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Over the last axis; einsum because numpy's sums over a short last axis are slow."""
    return np.einsum("...i,...i->...", vectors, vectors)


def find_blobs(smooth: Floats, ground: Background, limits: Thresholds) -> list[Blob]:
    """Find all blobs but smudges and flecks. Raises `TooBusy` on textures, which would take long."""
    difference = smooth - ground.colour
    contrast = np.sqrt(squared_lengths(difference))
    regions, n_regions = _regions(contrast, limits)
    if not n_regions:
        return []
    peaks = ndimage.maximum_filter(contrast, NEIGHBOURHOOD)
    visible = regions > 0
    names = _colour_map(smooth, visible & (contrast >= CORE * peaks), regions, n_regions, limits)
    seeds = _seeds(visible & (contrast >= HALF * peaks), names)
    return _blobs(difference, contrast, seeds, limits)


def _regions(contrast: Floats, limits: Thresholds) -> tuple[Labels, int]:
    """Connected areas that stand out, numbered from 1; what is faint or tiny as a whole is background."""
    regions, n = ndimage.label(contrast > limits.visible)
    areas = np.bincount(regions.ravel(), minlength=n + 1)
    strong = np.bincount(regions[contrast > limits.faint], minlength=n + 1)
    kept = (areas >= limits.smudge_area) & (strong > 0)
    kept[0] = False
    if kept.sum() > limits.blobs:
        raise TooBusy(f"{kept.sum()} separate regions")
    numbers = np.where(kept, np.cumsum(kept), 0)
    return numbers[regions], int(kept.sum())


def _colour_map(smooth: Floats, core: Mask, regions: Labels, n_regions: int, limits: Thresholds) -> Labels:
    """Per pixel, the palette colour of the nearest core pixel whose colour is not fringe."""
    names = np.full(core.shape, -1, np.intp)
    names[core] = nearest_colours(smooth[core], limits)
    n_colours = int(names.max()) + 1
    counts = np.zeros((n_regions + 1, n_colours), np.intp)
    np.add.at(counts, (regions[core], names[core]), 1)
    totals = counts.sum(1)
    for region in np.flatnonzero((counts > 0).sum(1) > 1):
        inside = core & (regions == region)
        ruler = counts[region].argmax()
        if counts[region, ruler] >= RULING_SHARE * totals[region]:
            names[inside] = ruler
        else:
            _drop_fringe(names, inside, limits)
    where = ndimage.distance_transform_edt(names < 0, return_distances=False, return_indices=True)
    return names[where[0], where[1]]


def _drop_fringe(names: Labels, inside: Mask, limits: Thresholds) -> None:
    patches = np.zeros(names.shape, np.intp)
    n = 0
    for name in np.unique(names[inside]):
        labels, n_labels = ndimage.label(inside & (names == name))
        patches[labels > 0] = labels[labels > 0] + n
        n += n_labels
    areas = np.bincount(patches.ravel(), minlength=n + 1)
    areas[0] = 0
    smallest = min(max(FRINGE_SHARE * areas.max(), limits.smudge_area / 2), areas.max())
    names[inside & (areas[patches] < smallest)] = -1


def _seeds(filled: Mask, names: Labels) -> Labels:
    """Numbered connected areas of one colour each."""
    seeds = np.zeros(filled.shape, np.intp)
    n = 0
    for name in np.unique(names[filled]):
        labels, n_labels = ndimage.label(filled & (names == name))
        seeds[labels > 0] = labels[labels > 0] + n
        n += n_labels
    return seeds


def _blobs(difference: Floats, contrast: Floats, seeds: Labels, limits: Thresholds) -> list[Blob]:
    areas = np.bincount(seeds.ravel())
    areas[0] = 0
    large = np.flatnonzero(areas >= limits.smudge_area / 2)
    if large.size > 2 * limits.blobs:
        raise TooBusy(f"{large.size} separate patches")
    kept = np.where(np.isin(seeds, large), seeds, 0)
    if not large.size:
        return []
    distance, where = ndimage.distance_transform_edt(kept == 0, return_indices=True)
    territory = np.where(distance <= REACH, kept[where[0], where[1]], 0)
    blobs: list[Blob] = []
    for number, window in enumerate(ndimage.find_objects(kept), start=1):
        if window is None:
            continue
        inside = kept[window] == number
        strong = contrast[window][inside]
        peak = float(np.quantile(strong, 0.9))
        area = float(np.minimum(strong / peak, 1).sum())
        if peak < limits.faint or area < limits.smudge_area:
            continue
        if len(blobs) == limits.blobs:
            raise TooBusy(f"more than {limits.blobs} blobs")
        core = inside & (contrast[window] >= CORE * peak)
        rows, columns = window
        box = Box(float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        colour = np.median(difference[window][core], axis=0).astype(np.float32)
        blobs.append(Blob(box, area, peak, colour, territory == number))
    return blobs
