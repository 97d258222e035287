"""The stated taste: what it measures, and choices that follow it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dpt.claims.facts import Box
from dpt.cli.prefer.draw import (
    PICTURES,
    DrawingOptions,
    SynthesizeOptions,
    scene_prompts,
    synthesize,
    write_preferences,
)
from dpt.data.preference.records import read_preferences, shared_keys
from dpt.data.scenes.render import render
from dpt.data.scenes.world import Scene, SceneObject
from dpt.errors import UserError
from dpt.evaluation.suites.pocket import pocket_prompts
from dpt.keyed_random import KeyedRandom
from dpt.methods.candidates import candidate_requests
from dpt.pocket.taste import Taste, TastedPicture, choose, probabilities, taste_picture


def drawn(*places: tuple[float, float], shape: str = "circle") -> Image.Image:
    boxes = [Box(x - 10.5, y - 10.5, x + 10.5, y + 10.5) for x, y in places]
    return Image.fromarray(render(Scene(tuple(SceneObject(shape, "red", "large", box) for box in boxes), "white")))


def test_an_image_is_measured_by_the_oracle_and_by_its_pixels() -> None:
    prompt = next(p for p in pocket_prompts("count", 400) if p.text == "a red circle")
    middle, corner = taste_picture(drawn((32, 32)), prompt), taste_picture(drawn((14, 14)), prompt)
    two, wrong = (
        taste_picture(drawn((16, 32), (48, 32)), prompt),
        taste_picture(drawn((32, 32), shape="square"), prompt),
    )
    empty = taste_picture(Image.new("RGB", (64, 64), "white"), prompt)
    assert middle.right and corner.right and not two.right and not wrong.right and not empty.right
    assert middle.centred == pytest.approx(1, abs=0.02) and corner.centred < 0.5 and two.centred > 0.95
    assert empty.light > middle.light > two.light and not empty.readable and empty.centred == 0


def test_choices_follow_the_softmax_of_the_utilities() -> None:
    pictures = [TastedPicture(True, True, 0.5, 0.8), TastedPicture(False, True, 1.0, 0.8)]
    taste = Taste(right=1.0, readable=0.5, light=0.0, centred=0.0, temperature=1.0)
    expected = probabilities(pictures, taste)
    assert expected[0] == pytest.approx(2.71828 / 3.71828, abs=1e-4)
    chosen = Counter(choose(pictures, taste, KeyedRandom("test", n)) for n in range(2000))
    assert chosen[0] / 2000 == pytest.approx(expected[0], abs=0.03)
    assert choose(pictures, replace(taste, right=-50.0), KeyedRandom("test", 0)) == 1
    with pytest.raises(UserError, match="--temperature must be positive, not 0"):
        Taste(temperature=0)


def test_preferences_are_written_in_the_published_format_without_leakage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = SynthesizeOptions(tmp_path, prompts=40, test_fraction=0.3, drawing=DrawingOptions(n_samples=2))
    prompts = scene_prompts(options)
    assert len({prompt.text for prompt in prompts}) == 40
    assert {prompt.category for prompt in prompts[:4]} == {"single", "binding", "count", "spatial"}
    requests = candidate_requests([prompt.text for prompt in prompts], 2)
    (tmp_path / PICTURES).mkdir()
    for request in requests:
        drawn((20 + 4 * request.number, 32)).save(tmp_path / PICTURES / request.file_name)
    write_preferences(options, prompts, requests)
    train, test = (read_preferences(tmp_path / f"preference_{part}.json") for part in ("train", "test"))
    assert len(train) + len(test) == 40 and 8 <= len(test) <= 14 and not shared_keys(train, test)
    entry = json.loads((tmp_path / "preference_train.json").read_text())[0]
    assert entry.keys() == {"id", "prompt", "human_preference", "file_path", "user_hash", "contain_name"}
    stated = json.loads((tmp_path / "taste.json").read_text())
    assert stated["chance"] == 0.5 and stated["light"] == Taste.light and 0.5 <= stated["best_possible_top1"] <= 1


def test_a_choice_among_some_of_a_prompts_images(tmp_path: Path) -> None:
    options = SynthesizeOptions(tmp_path, prompts=20, choose_from=2, drawing=DrawingOptions(n_samples=4))
    prompts = scene_prompts(options)
    requests = candidate_requests([prompt.text for prompt in prompts], 4)
    (tmp_path / PICTURES).mkdir()
    for request in requests:
        drawn((20 + 4 * request.number, 32)).save(tmp_path / PICTURES / request.file_name)
    write_preferences(options, prompts, requests)
    train, test = (read_preferences(tmp_path / f"preference_{part}.json") for part in ("train", "test"))
    assert len(train) + len(test) == 40 and not shared_keys(train, test)
    assert {record.pictures for record in (*train, *test)} >= {("0_0.png", "0_1.png"), ("0_2.png", "0_3.png")}
    assert json.loads((tmp_path / "taste.json").read_text())["chance"] == 0.5
    with pytest.raises(UserError, match="--choose_from must be at least 2 and divide --n_samples, 4"):
        synthesize(replace(options, choose_from=3))
