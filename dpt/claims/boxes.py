"""Boxes in pixels, and the relations between them."""

from __future__ import annotations

from dataclasses import dataclass

RELATIONS: tuple[str, ...] = ("left", "right", "above", "below")


RELATION_MARGIN = 6.0
"""Pixels between two centres from which a relation is stated or accepted."""


@dataclass(frozen=True)
class Box:
    """Corners in pixels; x to the right, y downwards."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def centre(self) -> tuple[float, float]:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    def gap_to(self, other: Box) -> float:
        """Pixels between two boxes along the axis that separates them best; negative if they overlap."""
        return max(self.x0 - other.x1, other.x0 - self.x1, self.y0 - other.y1, other.y0 - self.y1)


def related(first: Box, second: Box, relation: str, margin: float = RELATION_MARGIN) -> bool:
    """Whether the centre of `first` lies beyond that of `second` in the relation's direction by the margin."""
    (ax, ay), (bx, by) = first.centre, second.centre
    ahead = {"left": bx - ax, "right": ax - bx, "above": by - ay, "below": ay - by}[relation]
    return ahead >= margin


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    return intersection / (a.width * a.height + b.width * b.height - intersection)
