from __future__ import annotations

from dataclasses import replace

import pytest

from dpt.claims.facts import Box, overlap
from dpt.claims.judge import Detection, Detections, Unreadable
from dpt.data.scenes.world import Scene, SceneObject
from dpt.detect.accuracy import DetectionCounts, compare, count_detections, refusals

CIRCLE = SceneObject("circle", "red", "large", Box(5, 5, 25, 25))
SQUARE = SceneObject("square", "blue", "large", Box(35, 30, 56, 51))
SCENE = Scene((CIRCLE, SQUARE), "white")


def detection_of(thing: SceneObject) -> Detection:
    return Detection(thing.shape, thing.box, 0.9, thing.colour, thing.size)


def test_detections_match_objects_in_any_order() -> None:
    assert compare(SCENE, Detections((detection_of(SQUARE), detection_of(CIRCLE)))) == DetectionCounts(1, 1, 2, right=2)


@pytest.mark.parametrize("slip", [{"label": "ring"}, {"colour": "blue"}, {"size": "small"}, {"box": Box(8, 8, 28, 28)}])
def test_one_wrong_attribute_makes_a_detection_wrong(slip: dict[str, object]) -> None:
    detections = Detections((replace(detection_of(CIRCLE), **slip), detection_of(SQUARE)))
    assert compare(SCENE, detections) == DetectionCounts(1, 0, 2, right=1, wrong=1)


def test_unreadable_and_missed_objects_are_not_wrong() -> None:
    detections = Detections(unreadable=(Unreadable(CIRCLE.box, "smeared"),))
    assert compare(SCENE, detections) == DetectionCounts(1, 0, 2, unreadable=1, missed=1)


def test_an_extra_detection_or_an_unreadable_region_makes_the_scene_inexact() -> None:
    everything = (detection_of(CIRCLE), detection_of(SQUARE))
    added = Detection("star", Box(40, 5, 55, 20), 0.9, "red", "small")
    assert compare(SCENE, Detections((*everything, added))) == DetectionCounts(1, 0, 2, right=2, extra=1)
    blotch = Unreadable(Box(40, 5, 55, 20), "a blotch")
    assert compare(SCENE, Detections(everything, (blotch,))) == DetectionCounts(1, 0, 2, right=2)


def test_counts_are_summed_over_scenes() -> None:
    detections = [Detections((detection_of(CIRCLE), detection_of(SQUARE))), Detections()]
    assert count_detections([SCENE, SCENE], detections) == DetectionCounts(2, 1, 4, right=2, missed=2)


def test_overlap() -> None:
    assert overlap(Box(0, 0, 2, 2), Box(1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap(Box(0, 0, 1, 1), Box(1, 0, 2, 1)) == 0


def test_images_without_nameable_objects_are_counted_by_outcome() -> None:
    named, blotch = Detections((detection_of(CIRCLE),)), Detections(unreadable=(Unreadable(CIRCLE.box, "?"),))
    assert refusals([named, blotch, blotch, Detections()]) == (1, 2, 1)
