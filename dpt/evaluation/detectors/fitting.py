"""Every shape fitted to every blob at once: position, width, height, strength and softness by Gauss-Newton.

The template side of the problem is precomputed (inverse compositional alignment), so a step is: sample the
blob in each candidate's frame, subtract the template, multiply by its pseudo-inverse, move the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpt.evaluation.detectors.templates import GRID, HALVES, Bank, edges

Floats = NDArray[np.float32]

STEPS = 6
LARGEST_STEP = 0.2
"""Most a frame moves or grows in a step, as a share of its half width: wrong shapes may not run away."""
SOFTEST = 1.5
SMALLEST_HALF = 3.0


@dataclass(frozen=True)
class Fit:
    """Of one blob, per shape of the bank."""

    boxes: Floats  # (shapes, 4): x0, y0, x1, y1 in the coordinates of the blob's window
    strengths: Floats  # (shapes,)
    residuals: Floats  # (shapes,): mean squared
    powers: Floats  # (shapes,): mean squared strength of the fitted template


def fit_shapes(covers: Floats, bank: Bank) -> list[Fit]:
    """`covers`: (blobs, height, width), how much of each pixel each blob covers."""
    measured = np.array([edges(cover) for cover in covers], np.float32)  # (blobs, 4)
    nominal = np.log(np.array(HALVES, np.float32))
    inset = bank.insets[len(HALVES) // 2]  # (shapes, 4)
    reach = (inset[:, 2:] - inset[:, :2])[None]  # of the half width, by shape
    half = (measured[:, None, 2:] - measured[:, None, :2]) / reach  # (blobs, shapes, 2)
    centre = measured[:, None, :2] - inset[None, :, :2] * half
    shape = np.arange(len(bank.shapes))[None]
    strength = np.ones(half.shape[:2], np.float32)
    softness = np.zeros(half.shape[:2], np.float32)

    for step in range(STEPS + 1):
        half = np.maximum(half, SMALLEST_HALF)
        level = np.abs(np.log(half).mean(-1, keepdims=True) - nominal).argmin(-1)  # (blobs, shapes)
        value = bank.values[level, shape]
        softening = bank.softenings[level, shape]
        model = strength[..., None] * value + softness[..., None] * softening
        difference = sample(covers, centre, half) - model
        if step == STEPS:
            break
        delta = (bank.solvers[level, shape] @ difference[..., None])[..., 0]
        geometry = delta[..., :4] / np.maximum(strength, 0.3)[..., None]
        geometry = np.clip(geometry, -LARGEST_STEP, LARGEST_STEP)
        centre = centre - geometry[..., :2] * half
        half = half / (1 + geometry[..., 2:])
        strength = np.clip(strength + delta[..., 4], 0.3, 2.0)
        softness = np.clip(softness + delta[..., 5], -0.5, SOFTEST)

    boxes = np.concatenate([centre - half, centre + half], axis=-1)
    residuals = np.einsum("...i,...i->...", difference, difference) / GRID.size**2
    powers = np.einsum("...i,...i->...", model, model) / GRID.size**2
    return [Fit(*parts) for parts in zip(boxes, strength, residuals, powers, strict=True)]


def sample(covers: Floats, centre: Floats, half: Floats) -> Floats:
    """Bilinear samples of (blobs, height, width) on the grid of each (blob, shape) frame."""
    height, width = covers.shape[1:]
    rows = _interpolation(centre[..., 1], half[..., 1], height)
    columns = _interpolation(centre[..., 0], half[..., 0], width)
    sampled = rows @ covers[:, None] @ columns.swapaxes(-1, -2)
    return np.asarray(sampled.reshape(*sampled.shape[:2], -1), np.float32)


def _interpolation(centre: Floats, half: Floats, length: int) -> Floats:
    """(blobs, shapes, grid, length): the weight of each pixel in the sample at each grid point."""
    at = centre[..., None] + half[..., None] * GRID - np.float32(0.5)
    weights = np.asarray(at[..., None] - np.arange(length, dtype=np.float32), np.float32)
    np.abs(weights, out=weights)
    np.subtract(1, weights, out=weights)
    return np.maximum(weights, 0, out=weights)
