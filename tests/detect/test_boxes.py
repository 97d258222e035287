"""What a detector answers is cut to the picture, counted, and refused where it is no number."""

from __future__ import annotations

from math import inf, nan

import pytest

from dpt.claims.boxes import Box
from dpt.claims.detections import Detection, Detections
from dpt.detect.base import check_finite, clip_boxes, nms
from dpt.errors import UserError


def found(x0: float, y0: float, x1: float, y1: float, score: float = 0.9, label: str = "car") -> Detection:
    return Detection(label, Box(x0, y0, x1, y1), score)


def test_boxes_are_cut_to_the_picture_and_counted() -> None:
    fitted = clip_boxes(Detections((found(5, 5, 9, 9), found(-4, 10, 30, 90), found(70, 10, 90, 20))), 64, 40)
    assert [one.box for one in fitted.objects] == [Box(5, 5, 9, 9), Box(0, 10, 30, 40)]
    assert (fitted.clipped, fitted.outside) == (1, 1)


@pytest.mark.parametrize(
    ("one", "sentence"),
    [(found(0, 0, 9, 9, nan), "the owl gave a car in base/a-0.png a box or a score that is not a number"),
     (found(0, nan, 9, 9), "not a number"), (found(0, 0, inf, 9), "not a number"),
     (found(9, 0, 3, 9), "whose corners are swapped")],
)  # fmt: skip
def test_nan_and_swapped_boxes_are_refused(one: Detection, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_finite(Detections((found(0, 0, 9, 9), one)), "the owl", "base/a-0.png")


def test_suppression_knows_classes_and_ties() -> None:
    weak, strong, other = found(0, 0, 10, 10, 0.5), found(1, 0, 11, 10, 0.8), found(0, 0, 10, 10, 0.6, "dog")
    assert nms([weak, strong, other], 0.15) == (strong, other)
    assert nms([weak, strong, other], None) == (strong, other, weak)
    first, second = found(0, 0, 10, 10), found(1, 0, 11, 10)
    assert nms([first, second], 0.15) == (first,)


def test_a_share_at_the_limit_is_kept() -> None:
    half = [found(0, 0, 10, 10), found(0, 0, 10, 5, 0.5)]
    assert len(nms(half, 0.5)) == 2
    assert len(nms(half, 0.49)) == 1


def test_a_suppressed_box_suppresses_nothing() -> None:
    chain = [found(0, 0, 10, 10, 0.9), found(4, 0, 14, 10, 0.8), found(9, 0, 19, 10, 0.7)]
    assert nms(chain, 0.3) == (chain[0], chain[2])
