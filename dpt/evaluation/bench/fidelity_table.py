"""The pictures of each method, as a set, beside a set of others: rendered scenes, or a folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpt.data.scenes.layout import scene
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD
from dpt.errors import UserError
from dpt.evaluation.bench.pictures import open_picture
from dpt.evaluation.detectors.base import Image
from dpt.evaluation.fidelity import Floats, frechet

if TYPE_CHECKING:
    from dpt.evaluation.clip import Clip

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
    """Sets of one size, since the distance depends on it."""
    known = None if reference == SCENES else _pictures_in(Path(reference))
    n = min([len(own) for own in files.values()] + ([] if known is None else [len(known)]))
    if n < 2:
        raise UserError("a Fréchet distance needs at least two pictures in each set")
    own = {name: _features((_pixels(file) for file in paths[:n]), clip) for name, paths in files.items()}
    if known is None:
        one, other = (_features(_scenes(start, n), clip) for start in (0, n))
        floor = frechet(one, other)
    else:
        one, floor = _features((_pixels(file) for file in known[:n]), clip), None
    distances = {name: frechet(features, one) for name, features in own.items()}
    told = "rendered scenes" if known is None else f"pictures in {Path(reference).name}"
    return Fidelity(clip.identity, told, n, one.shape[1], distances, floor)


def _scenes(start: int, n: int) -> Iterable[Image]:
    return (render(scene(SCENE_SEED, i, POCKET_WORLD)) for i in range(start, start + n))


def _features(images: Iterable[Image], clip: Clip) -> Floats:
    rest, parts = iter(images), []
    while part := list(islice(rest, AT_ONCE)):
        parts.append(clip.features(part))
    return np.concatenate(parts)


def _pixels(file: Path) -> Image:
    return np.asarray(open_picture(file))


def _pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--reference is {SCENES} or a folder of pictures, and {folder} is none")
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
