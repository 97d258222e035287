"""The Fréchet distance: known values, and scenes nearer to scenes than noise is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.linalg import sqrtm

from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, make_scene
from dpt.errors import UserError
from dpt.evaluation.fidelity import fidelity, frechet
from dpt.score.clip import Clip

SHIPPED = Path(__file__).parents[2] / "ckpt/pocket/clip"


def test_known_values() -> None:
    one = np.array([[0.0, 0], [2, 0], [0, 2], [2, 2]])
    assert frechet(one, one) == pytest.approx(0, abs=1e-12)
    assert frechet(one, one + np.array([3, 4])) == pytest.approx(25)
    assert frechet(one, 2 * one) == pytest.approx(2 + 2 * (4 / 3))


def test_it_is_the_formula() -> None:
    chance = np.random.default_rng(0)
    one, other = chance.normal(size=(50, 6)), chance.normal(size=(40, 6)) @ chance.normal(size=(6, 6)) + 1
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    apart = one.mean(0) - other.mean(0)
    expected = apart @ apart + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet(one, other) == pytest.approx(expected)
    assert frechet(other, one) == pytest.approx(expected)


@pytest.mark.parametrize("features", [np.zeros((1, 3)), np.zeros(4), np.array([[1.0, np.nan]] * 3)])
def test_what_is_no_set_is_refused(features: np.ndarray) -> None:
    with pytest.raises(ValueError, match="at least two rows of finite features"):
        frechet(features, np.eye(3))


def saved(folder: Path, images: list[np.ndarray]) -> list[Path]:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return sorted(folder.iterdir())


def test_scenes_are_nearer_to_scenes_than_noise_is(tmp_path: Path) -> None:
    clip = Clip.open(str(SHIPPED), device="cpu")
    chance = np.random.default_rng(0)
    files = {
        "scenes": saved(tmp_path / "scenes", [render(make_scene(3, i, POCKET_WORLD)) for i in range(40)]),
        "noise": saved(tmp_path / "noise", [chance.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(50)]),
    }
    found = fidelity(files, "scenes", clip)
    assert found.floor is not None and found.pictures == 40
    assert found.distances["scenes"] < 2 * found.floor < found.distances["noise"]
    assert "scenes against other scenes" in found.table and "compare within this table only" in found.note
    folder = fidelity(files, str(tmp_path / "scenes"), clip)
    assert folder.distances["scenes"] == pytest.approx(0, abs=1e-3) and folder.floor is None
    with pytest.raises(UserError, match="at least two pictures"):
        fidelity({"one": files["noise"][:1]}, "scenes", clip)
    with pytest.raises(UserError, match="--reference is scenes or a folder"):
        fidelity(files, str(tmp_path / "none"), clip)
