"""Post-processing of boxes: clipping, NaN checks and non-maximum suppression."""

from __future__ import annotations

from math import inf, nan

import pytest

from dpt.claims.facts import Box
from dpt.claims.judge import Detection, Detections
from dpt.detect.base import check_finite, clip_boxes, nms
from dpt.errors import UserError


def box_at(x0: float, y0: float, x1: float, y1: float, score: float = 0.9, label: str = "car") -> Detection:
    return Detection(label, Box(x0, y0, x1, y1), score)


def test_boxes_are_clipped_to_the_image_and_counted() -> None:
    fitted = clip_boxes(Detections((box_at(5, 5, 9, 9), box_at(-4, 10, 30, 90), box_at(70, 10, 90, 20))), 64, 40)
    assert [detection.box for detection in fitted.objects] == [Box(5, 5, 9, 9), Box(0, 10, 30, 40)]
    assert (fitted.clipped, fitted.outside) == (1, 1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [(box_at(0, 0, 9, 9, nan), "the owl returned a NaN or infinite box or score for 'car' in base/a-0.png"),
     (box_at(0, nan, 9, 9), "NaN or infinite"), (box_at(0, 0, inf, 9), "NaN or infinite"),
     (box_at(9, 0, 3, 9), "swapped corners")],
)  # fmt: skip
def test_nan_scores_and_invalid_boxes_are_errors(broken: Detection, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_finite(Detections((box_at(0, 0, 9, 9), broken)), "the owl", "base/a-0.png")


def test_nms_is_per_label_and_keeps_the_first_of_equal_scores() -> None:
    weak, strong, other = box_at(0, 0, 10, 10, 0.5), box_at(1, 0, 11, 10, 0.8), box_at(0, 0, 10, 10, 0.6, "dog")
    assert nms([weak, strong, other], 0.15) == (strong, other)
    assert nms([weak, strong, other], None) == (strong, other, weak)
    first, second = box_at(0, 0, 10, 10), box_at(1, 0, 11, 10)
    assert nms([first, second], 0.15) == (first,)


def test_nms_keeps_an_iou_equal_to_the_limit() -> None:
    half = [box_at(0, 0, 10, 10), box_at(0, 0, 10, 5, 0.5)]
    assert len(nms(half, 0.5)) == 2
    assert len(nms(half, 0.49)) == 1


def test_nms_ignores_suppressed_boxes() -> None:
    chain = [box_at(0, 0, 10, 10, 0.9), box_at(4, 0, 14, 10, 0.8), box_at(9, 0, 19, 10, 0.7)]
    assert nms(chain, 0.3) == (chain[0], chain[2])
