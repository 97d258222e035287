"""Objects to paint, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any

import numpy as np
import numpy.typing as npt

from dpt.claims.facts import Box
from dpt.claims.words import COLOURS
from dpt.detect.reader.detector import UNKNOWN, ReaderConfig

Floats = npt.NDArray[np.floating[Any]]

Rng = np.random.Generator


@dataclass
class Sketch:
    """An object that is about to be painted."""

    shape: str
    colour: Floats
    centre: tuple[float, float]
    extent: float
    label: tuple[int, int]
    """Shape and colour by number."""
    readable: int = 1
    stretch: float = 1.0
    """Width to height."""
    turn: float = 0.0
    """In radians."""
    wobble: float = 0.0
    """Of the outline, in shares of half the extent."""
    other_shape: str | None = None
    mix: float = 0.0
    """How far the outline is on its way to the other shape."""
    alpha: float = 1.0
    softness: float = 1.0
    """Pixels across which the edge fades."""
    second_colour: Floats | None = None
    """Of the part beyond the cut; with None it is missing."""
    cut: float = 0.0
    """Share of the extent beyond the cut."""
    cut_angle: float = 0.0
    hole: float = 0.0
    """Radius of a hole, in shares of half the extent."""
    bump: float = 0.0
    """The same, of a disc at the edge."""
    at: tuple[float, float] = (0.0, 0.0)
    """Where hole or bump is, in halves of the extent."""

    @property
    def box(self) -> Box:
        (x, y), half = self.centre, self.extent / 2
        wide, high = half * self.stretch**0.5, half / self.stretch**0.5
        return Box(x - wide, y - high, x + wide, y + high)


def _between_shapes(sketch: Sketch, rng: Rng, config: ReaderConfig) -> None:
    others = [shape for shape in config.shapes if shape != sketch.shape]
    sketch.other_shape, sketch.mix = str(rng.choice(others)), float(rng.uniform(0.1, 0.6))
    # Half way from a square to a cross is nearly a circle.
    ends = {sketch.shape, sketch.other_shape}
    sketch.readable = UNKNOWN if sketch.mix < 0.38 or ends == {"square", "cross"} else 0


def _between_colours(sketch: Sketch, rng: Rng, config: ReaderConfig) -> None:
    other = rng.choice([name for name in config.colours if name != config.colours[sketch.label[1]]])
    share = float(rng.uniform(0.15, 0.6))
    sketch.colour = sketch.colour + share * (np.array(COLOURS[str(other)]) - sketch.colour)
    others = [rgb for name, rgb in COLOURS.items() if name in config.colours]
    near_a_third = sum(np.linalg.norm(sketch.colour - np.array(rgb)) < 60 for rgb in others) > 0
    sketch.readable = UNKNOWN if share < 0.38 or near_a_third else 0


def _foreign_shape(sketch: Sketch, rng: Rng, config: ReaderConfig) -> None:
    foreign = ("star", "ring", "turned triangle", "turned square", "half cross")
    kind = str(rng.choice([name for name in foreign if name not in config.shapes]))
    if kind in ("star", "ring"):
        sketch.shape = kind
    elif kind == "half cross":
        sketch.shape, sketch.cut, sketch.cut_angle = "cross", 0.34, float(rng.integers(4)) * pi / 2
    else:
        sketch.shape = kind.removeprefix("turned ")
        turn = rng.uniform(0.25 * pi, 1.75 * pi) if sketch.shape == "triangle" else rng.uniform(0.2, 0.3) * pi
        sketch.turn = float(turn)
    sketch.readable = 0


def _foreign_colour(sketch: Sketch, rng: Rng, config: ReaderConfig) -> None:
    foreign = [rgb for name, rgb in COLOURS.items() if name not in config.colours]
    foreign += [(40, 40, 44), (140, 140, 140), (120, 80, 40), (150, 155, 60)]
    sketch.colour = np.array(foreign[rng.integers(len(foreign))], float) + rng.normal(0, 6, 3)
    sketch.readable = 0


def _cut(sketch: Sketch, rng: Rng, config: ReaderConfig) -> None:
    sketch.cut, sketch.cut_angle = float(rng.uniform(0.03, 0.65)), float(rng.uniform(0, 2 * pi))
    if rng.random() < 0.4:
        other = rng.choice([name for name in config.colours if name != config.colours[sketch.label[1]]])
        sketch.second_colour = np.array(COLOURS[str(other)], float)
    sketch.readable = UNKNOWN  # decided by the area, once it is painted


def _stretched(sketch: Sketch, rng: Rng, config: ReaderConfig) -> None:
    ratio = float(rng.uniform(1.15, 2.0))
    sketch.stretch = ratio if rng.random() < 0.5 else 1 / ratio
    sketch.readable = 0 if ratio > 1.38 else UNKNOWN


def _wrong_size(sketch: Sketch, rng: Rng, config: ReaderConfig) -> None:
    sketch.extent = float(rng.uniform(8, 15) if rng.random() < 0.7 else rng.uniform(29, 36))
    sketch.readable = 0


def _faded(sketch: Sketch, rng: Rng, config: ReaderConfig) -> None:
    sketch.alpha = float(rng.uniform(0.25, 0.8))
    sketch.readable = 0 if sketch.alpha < 0.5 else UNKNOWN


def _soft(sketch: Sketch, rng: Rng, config: ReaderConfig) -> None:
    sketch.softness = float(rng.uniform(3, 12))
    sketch.readable = 0 if sketch.softness > 7 else UNKNOWN


def _uneven(sketch: Sketch, rng: Rng, config: ReaderConfig) -> None:
    sketch.wobble = float(rng.uniform(0.07, 0.3))
    sketch.readable = 0 if sketch.wobble > 0.16 else UNKNOWN


def _holed(sketch: Sketch, rng: Rng, config: ReaderConfig) -> None:
    sketch.hole, sketch.at = (
        float(rng.uniform(0.2, 0.6)),
        (float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-0.6, 0.6))),
    )
    sketch.readable = UNKNOWN  # decided by the area


def _bumped(sketch: Sketch, rng: Rng, config: ReaderConfig) -> None:
    angle = float(rng.uniform(0, 2 * pi))
    sketch.bump, sketch.at = float(rng.uniform(0.25, 0.7)), (1.0 * cos(angle), 1.0 * sin(angle))
    sketch.readable = UNKNOWN  # decided by the area


DEFECTS: tuple[tuple[Callable[[Sketch, Rng, ReaderConfig], None], float], ...] = (
    (_between_shapes, 0.2), (_between_colours, 0.12), (_foreign_shape, 0.12), (_foreign_colour, 0.06), (_cut, 0.18),
    (_stretched, 0.06), (_wrong_size, 0.06), (_faded, 0.05), (_soft, 0.03), (_uneven, 0.04), (_holed, 0.04),
    (_bumped, 0.04),
)  # fmt: skip


def spoil(sketch: Sketch, rng: Rng, config: ReaderConfig) -> None:
    chosen = int(rng.choice(len(DEFECTS), p=[share for _, share in DEFECTS]))
    DEFECTS[chosen][0](sketch, rng, config)
