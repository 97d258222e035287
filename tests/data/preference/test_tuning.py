"""What a preferred model is tuned on: captions, ratios, dropout."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dpt.data.images import Framing
from dpt.data.preference.source import TuningConfig, TuningData, training_caption, tuning_data
from dpt.data.stream import Stream
from dpt.errors import DataError, UserError

COUNTS = {"positive": 6, "negative": 4, "regularization": 10}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for kind, count in COUNTS.items():
        (tmp_path / kind).mkdir()
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / kind / f"{number}.png")
            rows.append({"file_name": f"{kind}/{number}.png", "prompt": f"{kind} prompt {number}", "type": kind})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def data(folder: Path, **config: Any) -> TuningData:
    return tuning_data(folder, None, None, None, TuningConfig(**config), Framing(8), seed=0)


def captions(source: Any, epochs: int = 1) -> list[str]:
    stream = Stream(source, seed=0)
    return [str(stream[position].caption) for position in range(epochs * len(source))]


def test_only_losers_get_the_prefix_and_get_it_once(folder: Path) -> None:
    assert training_caption("a cat", "positive") == training_caption("a cat", "regularization") == "a cat"
    once = training_caption("a cat", "negative")
    assert once == "Weird image. a cat" == training_caption(once, "negative")
    assert training_caption("a cat", "negative", "bad, ") == "bad, a cat"
    every = captions(data(folder).source)
    assert sum(caption.startswith("Weird image. negative prompt") for caption in every) == COUNTS["negative"]
    assert sum(caption.startswith(("positive prompt", "regularization prompt")) for caption in every) == 16


def test_every_image_is_shown_once_per_epoch_by_default(folder: Path) -> None:
    assert set(Counter(captions(data(folder).source, epochs=3)).values()) == {3}


def test_ratios_hold_whatever_the_number_of_images(folder: Path) -> None:
    source = data(folder, ratios=(1.0, 0.5, 2.5)).source
    stream = Stream(source, seed=3)
    n = 1200
    shares = Counter(str(stream[position].caption)[:3] for position in range(n))
    for start, share in (("pos", 0.25), ("Wei", 0.125), ("reg", 0.625)):
        assert abs(shares[start] - n * share) < 3 * (n * share * (1 - share)) ** 0.5, (start, shares)


def test_a_negative_adapter_trains_on_losers_alone_without_the_prefix(folder: Path) -> None:
    assert {caption[:6] for caption in captions(data(folder, negative="adapter").source)} == {"negati", "regula"}
    assert {caption[:6] for caption in captions(data(folder, negative="none").source)} == {"positi", "regula"}


def test_dropout_leaves_the_prefix_of_losers_and_nothing_of_other_captions(folder: Path) -> None:
    source = data(folder, prompt_dropout=0.25, negative_dropout=0.25).source
    every = captions(source, epochs=100)
    assert abs(every.count("") - 400) < 3 * (1600 * 0.25 * 0.75) ** 0.5
    assert abs(every.count("Weird image. ") - 100) < 3 * (400 * 0.25 * 0.75) ** 0.5
    assert captions(source, epochs=100) == every
    with pytest.raises(UserError, match="a dropout is between 0 and 1, not 2"):
        data(folder, prompt_dropout=2)


def test_regularisation_images_come_from_a_folder_of_their_own_and_faults_are_named(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    Image.new("RGB", (8, 8)).save(other / "x.png")
    (other / "x.txt").write_text("a lighthouse")
    both = tuning_data(folder, None, other, None, TuningConfig(), Framing(8), 0)
    assert len(both.parts["regularization"]) == 11 and "a lighthouse" in captions(both.source)
    assert both.identity != data(folder).identity
    with pytest.raises(UserError, match="gives negative images a share, and there are none"):
        data(folder, negative="none", ratios=(1.0, 1.0, 1.0))
    (folder / "bad.jsonl").write_text('{"file_name": "positive/0.png", "prompt": "p", "type": "nice"}')
    with pytest.raises(DataError, match="line 1: 'type' is one of positive, negative, regularization, not 'nice'"):
        tuning_data(folder, folder / "bad.jsonl", None, None, TuningConfig(), Framing(8), 0)
    with pytest.raises(DataError, match="there is no image"):
        (folder / "bad.jsonl").write_text('{"file_name": "gone.png", "prompt": "p"}')
        tuning_data(folder, folder / "bad.jsonl", None, None, TuningConfig(), Framing(8), 0)
