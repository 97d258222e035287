"""Fréchet distance between sets of pictures, and its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, make_scene
from dpt.detect.base import Image
from dpt.errors import UserError
from dpt.evaluation.bench.requests import open_image

if TYPE_CHECKING:
    from dpt.score.clip import Clip


Floats = NDArray[np.float64]


def frechet(first: Floats, second: Floats) -> float:
    """|m - n|^2 + tr(C + D - 2 (C D)^(1/2)) for means m, n and covariances C, D of features (pictures,width).

    Few pictures bias it upwards: compare sets of one size only.
    """
    for features in (first, second):
        if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
            raise ValueError("a set of pictures is at least two rows of finite features")
    shift = first.mean(0) - second.mean(0)
    first, second = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (first, second))
    # tr (C D)^(1/2) is the sum of roots of the eigenvalues of C^(1/2) D C^(1/2), which is symmetric.
    root = _root(first)
    inner = np.linalg.eigvalsh(root @ second @ root)
    shared = np.sqrt(np.clip(inner, 0, None)).sum()
    return float(max(shift @ shift + np.trace(first) + np.trace(second) - 2 * shared, 0))


def _root(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    root: Floats = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


SCENES = "scenes"

SCENE_SEED = 20_000_003
"""Of the reference scenes: no data folder and no training draws from it."""

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")

AT_ONCE = 256


@dataclass(frozen=True)
class Fidelity:
    encoder: str
    reference: str
    pictures: int
    """In each set."""
    width: int
    distances: dict[str, float]
    floor: float | None
    """Between two sets of scenes of that size: what a perfect model would have."""

    @property
    def named(self) -> dict[str, float]:
        return self.distances if self.floor is None else {**self.distances, "scenes against other scenes": self.floor}

    @property
    def note(self) -> str:
        few = "" if self.pictures > 10 * self.width else "; so few make it too large: compare within this table only"
        return (
            f"Fréchet distance of {self.width} features by {self.encoder} to {self.reference}, "
            f"{self.pictures:,} pictures a set{few}."
        )

    @property
    def table(self) -> str:
        lines = ["| Fréchet distance | value |", "|---|---|"]
        lines += [f"| {name} | {value:.3f} |" for name, value in self.named.items()]
        return "\n".join([*lines, "", self.note])


def fidelity(files: Mapping[str, Sequence[Path]], reference: str, clip: Clip) -> Fidelity:
    """All sets are cut to the smallest: the distance depends on their size."""
    known = None if reference == SCENES else _pictures_in(Path(reference))
    n = min([len(own) for own in files.values()] + ([] if known is None else [len(known)]))
    if n < 2:
        raise UserError("a Fréchet distance needs at least two pictures in each set")
    own = {method: _features((_read_pixels(file) for file in paths[:n]), clip) for method, paths in files.items()}
    if known is None:
        real, more = (_features(_scenes(start, n), clip) for start in (0, n))
        floor = frechet(real, more)
    else:
        real, floor = _features((_read_pixels(file) for file in known[:n]), clip), None
    distances = {method: frechet(features, real) for method, features in own.items()}
    name = "rendered scenes" if known is None else f"pictures in {Path(reference).name}"
    return Fidelity(clip.identity, name, n, real.shape[1], distances, floor)


def _scenes(start: int, n: int) -> Iterable[Image]:
    return (render(make_scene(SCENE_SEED, i, POCKET_WORLD)) for i in range(start, start + n))


def _features(images: Iterable[Image], clip: Clip) -> Floats:
    rest, parts = iter(images), []
    while part := list(islice(rest, AT_ONCE)):
        parts.append(clip.features(part))
    return np.concatenate(parts)


def _read_pixels(file: Path) -> Image:
    return np.asarray(open_image(file))


def _pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--reference is {SCENES} or a folder of pictures, and {folder} is none")
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
