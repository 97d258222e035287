"""The oracle's thresholds, and colours by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
