"""Segments an image into blobs: connected regions of one named colour that stand out from a plain background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dpt.claims.facts import Box
from dpt.claims.words import COLOURS


@dataclass(frozen=True)
class Thresholds:
    smoothing: float = 1.0
    """Sigma of the blur laid over image and templates alike: pixel noise and small blurs matter little."""

    # What is background
    background_spread: float = 36.0
    """Pixels this close to the border's median colour belong to the background: noise of sigma 16 does."""
    background_share: float = 0.25
    """With less background than this the picture is no scene; four large objects leave a half."""
    noise: float = 9.0
    """Most noise per channel, after smoothing, that is still read: raw noise of sigma 30."""

    # What is a blob, what a smudge
    visible: float = 26.0
    """Contrast of a pixel that is not background: a third of the palest pair (pink on sand, 80)."""
    faint: float = 48.0
    """A blob whose strongest pixels stay below this contrast is a faint smudge: ignored."""
    smudge_area: float = 24.0
    """A blob that covers less is a stray fleck: ignored. The smallest star covers 57."""
    blobs: int = 12
    """More blobs than this make the picture unreadable as a whole, which bounds the time spent on it."""

    # What is a shape
    misfit: float = 0.18
    """Most residual of the best shape, as a share of the shape's own strength. Outlines that wobble by 0.7
    pixels (rms) stay below it; a shape half way to another often does too, and fails by the margin."""
    margin: float = 1.65
    """The second best shape must leave this many times the best one's residual..."""
    margin_floor: float = 0.045
    """...where residuals below this count as this: they are noise, not evidence."""
    aspect: float = 1.22
    """Width to height, either way. A half-erased object is twice as long as wide."""
    size_slack: float = 1.22
    """An object may be this factor smaller or larger than the world's sizes and still have one..."""
    size_gap: float = 0.3
    """...but not lie in the middle share of the gap between two sizes."""

    # What is a colour
    brightness: float = 1.35
    """A colour may be this factor darker or brighter..."""
    brightness_weight: float = 0.35
    """...and the change counts this much beside a change of hue: pictures drift in brightness more easily."""
    colour_distance: float = 42.0
    """Most distance to a palette colour; JPEG at quality 50 and 20 % more brightness lead to 34."""
    colour_ratio: float = 0.72
    """Most distance to the nearest colour, as a share of that to the second: 42 % of the way between two."""
    impurity: float = 0.2
    """Most colour variation inside an object, as a share of its contrast."""


DEFAULT = Thresholds()


Floats = NDArray[np.float32]


NAMES = tuple(COLOURS)

PALETTE = np.array(list(COLOURS.values()), np.float32)


def distances(colours: Floats, limits: Thresholds) -> Floats:
    """(n, palette): from each of (n, 3) colours to each of the palette, brightened or darkened to meet it.

    A picture that is darker or lighter as a whole keeps its hues, so brightness counts, but less.
    """
    power = np.einsum("pi,pi->p", PALETTE, PALETTE)
    product = colours @ PALETTE.T
    gain = np.clip(product / power, 1 / limits.brightness, limits.brightness)
    squared = np.einsum("ni,ni->n", colours, colours)[:, None] - 2 * gain * product + gain**2 * power
    change = limits.brightness_weight**2 * (gain - 1) ** 2 * power
    return np.sqrt(np.maximum(squared + change, 0))


def nearest_colours(colours: Floats, limits: Thresholds) -> NDArray[np.intp]:
    return distances(colours, limits).argmin(-1)


def name_colour(colour: Floats, limits: Thresholds) -> tuple[str | None, float, str]:
    """The colour's name or None, the confidence (0 to 1), and why it has no name."""
    away = distances(colour[None], limits)[0]
    first, second = np.argsort(away)[:2]
    sureness = min(1 - away[first] / limits.colour_distance, 1 - away[first] / away[second] / limits.colour_ratio)
    if away[first] > limits.colour_distance:
        return None, 0.0, f"a colour far from every known one, {NAMES[first]} the nearest"
    if away[first] > limits.colour_ratio * away[second]:
        return None, 0.0, f"a colour between {NAMES[first]} and {NAMES[second]}"
    return NAMES[first], float(sureness), ""


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
