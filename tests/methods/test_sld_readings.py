"""Several readings of an image: views and their boxes, votes, and the noisy oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dpt.claims.facts import Box
from dpt.claims.judge import Detection, Detections, Unreadable
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, Scene, SceneObject
from dpt.detect.oracle.noisy import NoisyOracle
from dpt.detect.oracle.oracle import Oracle
from dpt.errors import UserError
from dpt.methods.sld.detecting import VIEWS, NounDetector, RepeatedReadings, consensus

OBJECTS = (
    SceneObject("circle", "red", "large", Box(38, 8, 59, 29)),
    SceneObject("square", "blue", "large", Box(6, 36, 27, 57)),
)

IMAGE = np.asarray(render(Scene(OBJECTS, "white")))


def seen(*objects: Detection, unreadable: Sequence[Unreadable] = ()) -> Detections:
    return Detections(objects, tuple(unreadable))


def test_boxes_of_every_view_are_those_of_the_image() -> None:
    image = np.full((40, 60, 3), 255, np.uint8)
    image[10:20, 30:45] = 0
    for view in VIEWS:
        shown = view.apply(image)
        assert shown.shape == image.shape
        rows, columns = np.nonzero(shown[..., 0] == 0)
        box = Box(float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
        assert view.restore(box, image) == Box(30, 10, 45, 20)
    assert len({view.apply(image).tobytes() for view in VIEWS}) == len(VIEWS)
    assert np.array_equal(VIEWS[0].apply(image), image)


def test_readings_of_an_exact_detector_agree_with_one() -> None:
    detect = NounDetector(Oracle(POCKET_WORLD))
    one, five = detect(IMAGE, ()), RepeatedReadings(detect, 5)(IMAGE, ())
    assert [(d.colour, d.label) for d in five.objects] == [(d.colour, d.label) for d in one.objects]
    for a, b in zip(one.objects, five.objects, strict=True):
        assert np.abs(np.subtract((a.box.x0, a.box.y0, a.box.x1, a.box.y1), (b.box.x0, b.box.y0, b.box.x1, b.box.y1))).max() < 0.5  # fmt: skip  # noqa: E501
    assert RepeatedReadings(detect, 1)(IMAGE, ()) == one
    for wrong in (0, 10):
        with pytest.raises(UserError, match="from 1 to 9"):
            RepeatedReadings(detect, wrong)


def test_what_most_readings_show_counts() -> None:
    box = Box(10, 10, 30, 30)
    whole = Detection("square", box, 0.9, "blue")
    halves = (replace(whole, box=Box(10, 10, 20, 30)), replace(whole, box=Box(20, 10, 30, 30)))
    cyan = replace(whole, colour="cyan", box=Box(11, 10, 31, 30))
    ghost = Detection("circle", Box(40, 40, 50, 50), 0.5, "red")
    region = Unreadable(Box(40, 0, 60, 20), "busy")
    merged = consensus([seen(*halves), seen(whole, ghost), seen(), seen(cyan), seen(whole, unreadable=[region])])
    assert merged.objects == (whole,)  # three of five, two of them blue; no half, no ghost
    assert merged.unreadable == ()
    split = consensus([seen(whole), seen(*halves), seen(*halves), seen(), seen(whole)])
    assert len(split.objects) == 1 and split.objects[0].box == box  # two halves vote for the whole
    assert consensus([seen(whole), seen(halves[0]), seen(halves[0]), seen(), seen(whole)]).objects == ()
    both = consensus([seen(whole, replace(whole, box=Box(12, 10, 32, 30)))] * 3)
    assert len(both.objects) == 2  # two objects of one reading stay two
    assert consensus([seen(unreadable=[region])] * 2 + [seen()]).unreadable[0].box == region.box
    assert consensus([seen(whole), seen()]).objects == ()  # half is not most


def test_the_noisy_oracle_errs_as_often_as_it_says_and_always_in_the_same_way() -> None:
    exact = Oracle(POCKET_WORLD)
    kinds: dict[int, int] = {0: 0, 1: 0, 2: 0}
    largest = 0.0
    for seed in range(120):
        (read,) = NoisyOracle(seed=seed).detect([IMAGE])
        assert (read,) == tuple(NoisyOracle(seed=seed).detect([IMAGE]))
        for thing in exact.read(IMAGE).objects:
            own = [d for d in read.objects if d.label == thing.label]
            kinds[len(own)] += 1
            if len(own) == 1:
                largest = max(largest, abs(own[0].box.x0 - thing.box.x0), abs(own[0].box.y1 - thing.box.y1))
    assert 0.06 < kinds[0] / 240 < 0.15
    assert 0.01 < kinds[2] / 240 < 0.09
    assert 1.0 < largest <= 0.02 * 64
    still = NoisyOracle(0, 0, 0)
    assert [d.box for d in still.detect([IMAGE])[0].objects] == [d.box for d in exact.read(IMAGE).objects]


class Counting:
    identity, classes = "counting", ("square",)

    def __init__(self) -> None:
        self.images: list[Any] = []

    def detect(self, images: Sequence[np.ndarray], queries: object = None) -> list[Detections]:
        self.images += images
        return [Detections()] * len(images)


def test_a_reading_is_a_pass_of_the_detector() -> None:
    detector = Counting()
    RepeatedReadings(NounDetector(detector), 3)(IMAGE, ())
    assert len(detector.images) == 3
