"""Selection of clear winners and losers: the numbers of the published rule."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from dpt.errors import UserError
from dpt.score.folder_scores import ScoredPicture, SelectionConfig, is_blurry, select


def chosen(scores: list[float], config: SelectionConfig | None = None) -> list[tuple[str, int, float]]:
    pictures = [ScoredPicture(i, "a prompt", score) for i, score in enumerate(scores)]
    return [(s.type, s.picture.id, round(s.confidence, 4)) for s in select(pictures, config)]


def test_selection_equals_the_published_rule() -> None:
    assert chosen([20, 20, 20, 21.09]) == []
    assert chosen([20, 20, 20, 21.11]) == [("positive", 3, 0.5028)]
    assert chosen([19, 21, 21, 21]) == [("negative", 0, 0.7112)]
    assert chosen([18, 20, 20, 22]) == [("negative", 0, 0.7758), ("positive", 3, 0.7758)]
    assert chosen([20, 20, 20, 20, 21.0]) == [("positive", 4, 0.4046)]
    assert chosen([20, 23, 20]) == []
    assert chosen([20, 23, 20], SelectionConfig(min_pictures=3)) == [("positive", 1, 0.9094)]
    assert chosen([20, 20, 24, 24]) == []  # a tie shares the softmax: 0.49 each
    assert chosen([10, 10, 10, 24, 24]) == [("positive", 3, 0.5)]  # the first of a tie


def test_temperature_divides_the_scores_and_large_scores_do_not_overflow() -> None:
    assert chosen([18, 20, 20, 22], SelectionConfig(temperature=4)) == []
    assert chosen([0.18, 0.20, 0.20, 0.22], SelectionConfig(temperature=0.01)) == chosen([18, 20, 20, 22])
    assert [kind for kind, _, _ in chosen([1e4, 0, 0, -1e4])] == ["positive", "negative"]
    with pytest.raises(UserError, match="--temperature must be positive, not 0"):
        SelectionConfig(temperature=0)


def test_line_order_and_missing_ids_are_ignored_and_blurry_images_excluded() -> None:
    rng = random.Random(0)
    pictures = [ScoredPicture(7 * i, f"prompt {i % 9}", rng.gauss(20, 1.5)) for i in range(54)]
    expected = select(pictures)
    assert {s.type for s in expected} == {"positive", "negative"}
    rng.shuffle(pictures)
    assert select(pictures) == expected
    group = [ScoredPicture(i, "p", s, blurry=i == 3) for i, s in enumerate([18, 20, 20, 99, 22])]
    assert [(s.type, s.picture.id, s.batch_size) for s in select(group)] == [("negative", 0, 4), ("positive", 4, 4)]
    assert select(group[:4]) == []


def picture(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.broadcast_to(levels, (16, 16)).astype(np.uint8))


def test_only_images_without_edges_are_blurry() -> None:
    step = np.where(np.arange(16) < 8, 40, 200)
    assert is_blurry(picture(np.full((16, 16), 90)))
    assert is_blurry(picture(np.arange(16) * 4))
    sharp = [np.indices((16, 16)).sum(0) % 2 * 255, step, step[::-1], step[:, None], step[::-1, None]]
    assert not any(is_blurry(picture(levels)) for levels in sharp)
    assert is_blurry(Image.new("L", (1, 1)))
