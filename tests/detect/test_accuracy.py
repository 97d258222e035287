from __future__ import annotations

from dataclasses import replace

import pytest

from dpt.claims.boxes import Box, overlap
from dpt.claims.detections import Detection, Detections, Unreadable
from dpt.data.scenes.world import Scene, SceneObject
from dpt.detect.accuracy import Tally, compare, refusals, tally

CIRCLE = SceneObject("circle", "red", "large", Box(5, 5, 25, 25))
SQUARE = SceneObject("square", "blue", "large", Box(35, 30, 56, 51))
SCENE = Scene((CIRCLE, SQUARE), "white")


def seen(thing: SceneObject) -> Detection:
    return Detection(thing.shape, thing.box, 0.9, thing.colour, thing.size)


def test_all_right() -> None:
    assert compare(SCENE, Detections((seen(SQUARE), seen(CIRCLE)))) == Tally(1, 1, 2, right=2)


@pytest.mark.parametrize("slip", [{"label": "ring"}, {"colour": "blue"}, {"size": "small"}, {"box": Box(8, 8, 28, 28)}])
def test_any_wrong_attribute_is_wrong(slip: dict[str, object]) -> None:
    found = Detections((replace(seen(CIRCLE), **slip), seen(SQUARE)))
    assert compare(SCENE, found) == Tally(1, 0, 2, right=1, wrong=1)


def test_unreadable_and_missed_are_not_wrong() -> None:
    found = Detections(unreadable=(Unreadable(CIRCLE.box, "smeared"),))
    assert compare(SCENE, found) == Tally(1, 0, 2, unreadable=1, missed=1)


def test_an_extra_object_or_an_unreadable_region_spoils_the_scene() -> None:
    everything = (seen(CIRCLE), seen(SQUARE))
    added = Detection("star", Box(40, 5, 55, 20), 0.9, "red", "small")
    assert compare(SCENE, Detections((*everything, added))) == Tally(1, 0, 2, right=2, extra=1)
    blotch = Unreadable(Box(40, 5, 55, 20), "a blotch")
    assert compare(SCENE, Detections(everything, (blotch,))) == Tally(1, 0, 2, right=2)


def test_tallies_add_up() -> None:
    found = [Detections((seen(CIRCLE), seen(SQUARE))), Detections()]
    assert tally([SCENE, SCENE], found) == Tally(2, 1, 4, right=2, missed=2)


def test_overlap() -> None:
    assert overlap(Box(0, 0, 2, 2), Box(1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap(Box(0, 0, 1, 1), Box(1, 0, 2, 1)) == 0


def test_refusals() -> None:
    named, blotch = Detections((seen(CIRCLE),)), Detections(unreadable=(Unreadable(CIRCLE.box, "?"),))
    assert refusals([named, blotch, blotch, Detections()]) == (1, 2, 1)
