"""The oracle on held-out scenes: its thresholds were set on seeds from 1000 up."""

from __future__ import annotations

from functools import cache

import pytest

from dpt.claims.facts import Box
from dpt.claims.words import COLOURS
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, WORLDS, Scene, SceneObject, make_scene
from dpt.detect.accuracy import DetectionCounts, compare, count_detections
from dpt.detect.base import Detector, Image
from dpt.detect.oracle.blobs import Thresholds
from dpt.detect.oracle.oracle import Oracle
from dpt.detect.test_images import DISTURBANCES

SEED = 77


@cache
def some_scenes(world: str, n: int) -> tuple[list[Scene], list[Image]]:
    scenes = [make_scene(SEED, index, WORLDS[world]) for index in range(n)]
    return scenes, [render(scene) for scene in scenes]


def read(world: str, n: int, disturbance: str) -> DetectionCounts:
    scenes, images = some_scenes(world, n)
    disturbed = [DISTURBANCES[disturbance](image, index) for index, image in enumerate(images)]
    return count_detections(scenes, Oracle(WORLDS[world]).detect(disturbed))


@pytest.mark.parametrize("world", ["full", "pocket"])
def test_clean_scenes_are_read_exactly(world: str) -> None:
    counts = read(world, 200, "clean")
    assert counts.exact == counts.scenes == 200


LEAST_EXACT = {"jpeg 90": 0.95, "jpeg 75": 0.9, "jpeg 50": 0.75}
"""Chroma is halved by JPEG: small pale objects lose their outline and become unreadable, not wrong."""


@pytest.mark.parametrize("disturbance", [name for name in DISTURBANCES if name != "clean"])
def test_disturbed_scenes_are_read_nearly_exactly(disturbance: str) -> None:
    counts = read("full", 50, disturbance)
    assert counts.exact >= LEAST_EXACT.get(disturbance, 0.98) * counts.scenes
    assert counts.wrong + counts.extra <= 1
    pocket = read("pocket", 20, disturbance)
    assert pocket.exact == pocket.scenes


def test_the_identity_depends_on_world_and_thresholds() -> None:
    oracle: Detector = Oracle()
    identities = {oracle.identity, Oracle(POCKET_WORLD).identity, Oracle(limits=Thresholds(misfit=0.1)).identity}
    assert len(identities) == 3
    assert oracle.identity == Oracle().identity


def test_reading_is_deterministic_and_does_not_modify_the_image() -> None:
    _, images = some_scenes("full", 20)
    before = [image.copy() for image in images]
    together = Oracle().detect(images, queries=[["circle"]] * len(images))
    assert together == [Oracle().read(image) for image in reversed(images)][::-1]
    assert all((image == copy).all() for image, copy in zip(images, before, strict=True))


def test_confidence_is_high_on_clean_scenes_and_never_above_one() -> None:
    _, images = some_scenes("full", 50)
    confidences = [o.confidence for detections in Oracle().detect(images) for o in detections.objects]
    assert min(confidences) > 0.6
    assert max(confidences) <= 1


@pytest.mark.parametrize("left", POCKET_WORLD.colours)
@pytest.mark.parametrize("gap", [1.0, 0.0])
def test_touching_objects_of_different_colours_are_separated(left: str, gap: float) -> None:
    right = next(colour for colour in POCKET_WORLD.colours if colour != left)
    objects = (
        SceneObject("circle", left, "large", Box(8, 20, 29, 41)),
        SceneObject("square", right, "large", Box(29 + gap, 21, 50 + gap, 42)),
    )
    touching = Scene(objects, "white")
    assert compare(touching, Oracle(POCKET_WORLD).read(render(touching))).exact == 1


@pytest.mark.parametrize("colour", COLOURS)
def test_touching_objects_of_one_colour_are_unreadable(colour: str) -> None:
    objects = tuple(SceneObject("square", colour, "large", Box(x, 20, x + 21, 41)) for x in (8, 29))
    detections = Oracle().read(render(Scene(objects, "white")))
    assert not detections.objects
    assert detections.unreadable


@pytest.mark.parametrize("shape", ["star", "ring"])
def test_shapes_of_another_world_are_unreadable(shape: str) -> None:
    foreign = Scene((SceneObject(shape, "red", "large", Box(20, 20, 41, 41)),), "white")
    (region,) = Oracle(POCKET_WORLD).read(render(foreign)).unreadable
    assert shape in region.why
