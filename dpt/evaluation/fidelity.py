"""Fréchet distance between sets of pictures, diversity within each prompt, and their table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, make_scene
from dpt.detect.base import Image
from dpt.errors import UserError
from dpt.evaluation.bench.results import open_image
from dpt.intervals import Estimate, bootstrap

if TYPE_CHECKING:
    from dpt.score.clip import ImageEncoder


Floats = NDArray[np.float64]


def frechet(first: Floats, second: Floats) -> float:
    """|m - n|^2 + tr(C + D - 2 (C D)^(1/2)) for means m, n and covariances C, D of features (pictures,width).

    Biased upwards for few pictures: compare only sets of equal size.
    """
    for features in (first, second):
        if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
            raise ValueError("the features must be (n >= 2, width) and finite")
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
"""Seed of the reference scenes, which no data set or training uses."""

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")

BATCH_SIZE = 256


@dataclass(frozen=True)
class Fidelity:
    encoder: str
    reference: str
    """Empty if only diversity was measured."""
    pictures: int
    """Number of pictures in each set; 0 if only diversity was measured."""
    width: int
    distances: dict[str, float]
    floor: float | None
    """Distance between two disjoint sets of scenes: that of a perfect model."""
    diversity: dict[str, Estimate] = field(default_factory=dict)
    """Mean distance (1 - cosine) between the features of two pictures of one prompt."""

    @property
    def named(self) -> dict[str, float]:
        return self.distances if self.floor is None else {**self.distances, "scenes against other scenes": self.floor}

    @property
    def note(self) -> str:
        if not self.reference:
            return f"Diversity by the {self.width} features of {self.encoder}."
        caveat = (
            "" if self.pictures > 10 * self.width else "; biased upwards for so few: compare only within this table"
        )
        return (
            f"Fréchet distance of {self.width} features by {self.encoder} to {self.reference}, "
            f"{self.pictures:,} pictures per set{caveat}."
        )

    @property
    def table(self) -> str:
        if not self.reference:
            rows = [f"| {name} | {value.plain} |" for name, value in self.diversity.items()]
            return "\n".join(["| | diversity |", "|---|---|", *rows, "", self.note])
        rows = [f"| {name} | {value:.3f} | {self.diversity_of(name)} |" for name, value in self.named.items()]
        return "\n".join(["| | Fréchet distance | diversity |", "|---|---|---|", *rows, "", self.note])

    def diversity_of(self, name: str) -> str:
        return self.diversity[name].plain if name in self.diversity else ""


def diversity(features: Floats, prompts: Sequence[str]) -> Estimate | None:
    """Mean of 1 - cosine over the pairs of pictures of a prompt, then over prompts. None without any pair."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    groups: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(number)
    means = []
    for rows in groups.values():
        if len(rows) > 1:
            total = len(rows) * (len(rows) - 1)
            cosines = unit[rows] @ unit[rows].T
            means.append(1 - (cosines.sum() - np.trace(cosines)) / total)
    return bootstrap([means]) if means else None


def fidelity(
    files: Mapping[str, Sequence[Path]],
    reference: str | None,
    encoder: ImageEncoder,
    prompts: Mapping[str, Sequence[str]] | None = None,
) -> Fidelity:
    """Fréchet distance and diversity of each method; diversity alone without a reference.

    `prompts` names the prompt of each file. For the distance, which depends on their size, all sets are truncated to
    the smallest. Diversity is of all images.
    """
    reference_files = None if reference in (SCENES, None) else _pictures_in(Path(str(reference)))
    n = min([len(paths) for paths in files.values()] + ([] if reference_files is None else [len(reference_files)]))
    if reference is not None and n < 2:
        what = reference if reference_files is not None and len(reference_files) < 2 else "a method"
        raise UserError(f"a Fréchet distance needs at least two images in each set; {what} has fewer")
    features = {method: _features(map(_read_pixels, paths), encoder) for method, paths in files.items()}
    spread = {method: diversity(features[method], names) for method, names in (prompts or {}).items()}
    name, pictures, floor, distances = "", 0, None, {}
    if reference is not None:
        pictures = n
        if reference_files is None:
            real, more_scenes = (_features(_scenes(start, n), encoder) for start in (0, n))
            name, floor = "rendered scenes", frechet(real, more_scenes)
        else:
            real = _features((_read_pixels(file) for file in reference_files[:n]), encoder)
            name = f"pictures in {Path(reference).name}"
        distances = {method: frechet(method_features[:n], real) for method, method_features in features.items()}
    return Fidelity(
        encoder=encoder.identity,
        reference=name,
        pictures=pictures,
        width=next(iter(features.values())).shape[1],
        distances=distances,
        floor=floor,
        diversity={method: estimate for method, estimate in spread.items() if estimate},
    )


def _scenes(start: int, n: int) -> Iterable[Image]:
    return (render(make_scene(SCENE_SEED, i, POCKET_WORLD)) for i in range(start, start + n))


def _features(images: Iterable[Image], encoder: ImageEncoder) -> Floats:
    remaining, features = iter(images), []
    while batch := list(islice(remaining, BATCH_SIZE)):
        features.append(encoder.features(batch))
    return np.concatenate(features)


def _read_pixels(file: Path) -> Image:
    return np.asarray(open_image(file))


def _pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--reference must be {SCENES} or a folder of images: {folder} is not a folder")
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
