"""Colours by name, with doubt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpt.data.scenes.world import COLOURS
from dpt.evaluation.detectors.thresholds import Thresholds

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
    """The colour's name or None, how far it is from doubt (0 to 1), and why it has no name."""
    away = distances(colour[None], limits)[0]
    first, second = np.argsort(away)[:2]
    sureness = min(
        1 - away[first] / limits.colour_distance, 1 - away[first] / away[second] / limits.colour_ratio
    )
    if away[first] > limits.colour_distance:
        return None, 0.0, f"a colour far from every known one, {NAMES[first]} the nearest"
    if away[first] > limits.colour_ratio * away[second]:
        return None, 0.0, f"a colour between {NAMES[first]} and {NAMES[second]}"
    return NAMES[first], float(sureness), ""
