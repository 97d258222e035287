"""The Fréchet distance: known values, and scenes against noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.linalg import sqrtm

from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, make_scene
from dpt.errors import UserError
from dpt.evaluation.fidelity import diversity, fidelity, frechet
from dpt.score.clip import Clip

SHIPPED = Path(__file__).parents[2] / "ckpt/pocket/clip"


def test_shifts_and_scales_of_a_set_have_known_distances() -> None:
    features = np.array([[0.0, 0], [2, 0], [0, 2], [2, 2]])
    assert frechet(features, features) == pytest.approx(0, abs=1e-12)
    assert frechet(features, features + np.array([3, 4])) == pytest.approx(25)
    assert frechet(features, 2 * features) == pytest.approx(2 + 2 * (4 / 3))


def test_the_distance_equals_the_formula_with_sqrtm() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 6)), rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) + 1
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(0) - b.mean(0)
    expected = shift @ shift + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet(a, b) == pytest.approx(expected)
    assert frechet(b, a) == pytest.approx(expected)


@pytest.mark.parametrize("features", [np.zeros((1, 3)), np.zeros(4), np.array([[1.0, np.nan]] * 3)])
def test_invalid_features_are_an_error(features: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be \(n >= 2, width\) and finite"):
        frechet(features, np.eye(3))


def saved(folder: Path, images: list[np.ndarray]) -> list[Path]:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return sorted(folder.iterdir())


def test_scenes_are_nearer_to_scenes_than_noise_is(tmp_path: Path) -> None:
    clip = Clip.open(str(SHIPPED), device="cpu")
    rng = np.random.default_rng(0)
    files = {
        "scenes": saved(tmp_path / "scenes", [render(make_scene(3, i, POCKET_WORLD)) for i in range(40)]),
        "noise": saved(tmp_path / "noise", [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(50)]),
    }
    prompts = {"scenes": [f"{number // 4}" for number in range(40)], "noise": [str(number) for number in range(50)]}
    result = fidelity(files, "scenes", clip, prompts)
    assert list(result.diversity) == ["scenes"], "a prompt with one picture has no pairs"
    assert 0 < result.diversity["scenes"].value < 1 and result.diversity_of("scenes") in result.table
    assert result.floor is not None and result.pictures == 40
    assert result.distances["scenes"] < 2 * result.floor < result.distances["noise"]
    assert "scenes against other scenes" in result.table and "compare only within this table" in result.note
    folder = fidelity(files, str(tmp_path / "scenes"), clip)
    assert folder.distances["scenes"] == pytest.approx(0, abs=1e-3) and folder.floor is None
    with pytest.raises(UserError, match="at least two images"):
        fidelity({"small": files["noise"][:1]}, "scenes", clip)
    with pytest.raises(UserError, match="--reference must be scenes or a folder"):
        fidelity(files, str(tmp_path / "none"), clip)


def test_diversity_is_the_mean_distance_of_the_pairs_of_a_prompt() -> None:
    features = np.array([[1.0, 0], [0, 2], [3, 0], [1, 1], [5, 5], [9, 0]])
    pairs = diversity(features, ["a", "a", "a", "b", "b", "c"])
    assert pairs is not None and pairs.value == pytest.approx((2 / 3 + 0) / 2)
    assert diversity(features[:2], ["a", "b"]) is None


def test_a_small_set_shortens_the_distance_and_not_the_diversity(tmp_path: Path) -> None:
    clip = Clip.open(str(SHIPPED), device="cpu")
    images = [render(make_scene(3, i, POCKET_WORLD)) for i in range(12)]
    files = {"many": saved(tmp_path / "many", images), "few": saved(tmp_path / "few", images[:6])}
    prompts = {"many": [str(number % 6) for number in range(12)], "few": [str(number) for number in range(6)]}
    result = fidelity(files, "scenes", clip, prompts)
    assert result.pictures == 6 and result.distances["many"] == pytest.approx(result.distances["few"])
    whole = diversity(clip.features(images), prompts["many"])
    assert whole is not None and result.diversity["many"].value == pytest.approx(whole.value, rel=1e-4)
