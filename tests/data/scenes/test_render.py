from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpt.claims.facts import Box
from dpt.claims.words import COLOURS, SHAPES
from dpt.data.scenes.render import coverage, render
from dpt.data.scenes.world import BACKGROUNDS, Scene, SceneObject, World, make_scene
from tests.data.scenes.strategies import worlds_with_scenes

WHOLE = slice(0, 64)
extents = st.floats(13.5, 22.5)
corners = st.floats(1.5, 40.0)


def box_at(x: float, y: float, extent: float) -> Box:
    return Box(x, y, x + extent, y + extent)


@given(worlds_with_scenes())
def test_object_has_its_colour_at_the_centre_and_background_around_it(
    drawn: tuple[World, Scene, int],
) -> None:
    _, scene, _ = drawn
    image = render(scene)
    assert image.shape == (scene.image_size, scene.image_size, 3)
    assert image.dtype == np.uint8
    for thing in scene.objects:
        x, y = (int(at) for at in thing.box.centre)
        expected = BACKGROUNDS[scene.background] if thing.shape == "ring" else COLOURS[thing.colour]
        np.testing.assert_array_equal(image[y, x], expected)
    for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        np.testing.assert_array_equal(image[y, x], BACKGROUNDS[scene.background])


@given(st.sampled_from(SHAPES), corners, corners, extents)
def test_box_is_tight_within_a_pixel(shape: str, x: float, y: float, extent: float) -> None:
    box = box_at(x, y, extent)
    shown = np.argwhere(coverage(shape, box, WHOLE, WHOLE) > 0.1)
    (top, left), (bottom, right) = shown.min(0), shown.max(0) + 1
    assert np.abs(np.subtract((left, top, right, bottom), (box.x0, box.y0, box.x1, box.y1))).max() <= 1.0


@given(st.sampled_from(SHAPES), corners, corners, extents)
def test_rendering_window_contains_the_whole_object(shape: str, x: float, y: float, extent: float) -> None:
    """Rendering computes only the pixels around each box, which must hold the whole shape."""
    thing = SceneObject(shape, "red", "large", box_at(x, y, extent))
    cover = coverage(shape, thing.box, WHOLE, WHOLE)[..., None]
    ground = np.asarray(BACKGROUNDS["black"], np.float32)
    whole = ground + cover * (np.asarray(COLOURS["red"], np.float32) - ground)
    difference = render(Scene((thing,), "black")).astype(int) - (whole + 0.5).astype(int)
    assert np.abs(difference).max() <= 1


@given(st.sampled_from([s for s in SHAPES if s != "ring"]), extents, st.floats(1.0, 5.0))
def test_larger_shape_covers_the_smaller(shape: str, extent: float, more: float) -> None:
    def centred(width: float) -> Box:
        return box_at(32 - width / 2, 32 - width / 2, width)

    small, large = (coverage(shape, centred(w), WHOLE, WHOLE) for w in (extent, extent + more))
    assert (large >= small - 1e-5).all()
    assert large.sum() > small.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_falls_off_away_from_the_shape(shape: str) -> None:
    """Coverage never increases along a ray outwards from the outline."""
    row = coverage(shape, box_at(20, 20, 20), slice(38, 39), slice(30, 64))[0]
    last = int(np.argmax(row))
    assert (np.diff(row[last:]) <= 1e-5).all()
    assert row[-1] == 0


@pytest.mark.parametrize(
    ("shape", "share"),
    [
        ("circle", np.pi / 4),
        ("square", 1.0),
        ("triangle", 0.5),
        ("cross", 1 - (1 - 0.36) ** 2),
        ("ring", np.pi / 4 * (1 - 0.52**2)),
    ],
)
def test_shape_covers_its_area(shape: str, share: float) -> None:
    area = coverage(shape, box_at(20.3, 19.6, 20.0), WHOLE, WHOLE).sum()
    assert area == pytest.approx(share * 400, rel=0.03)


def test_shapes_are_distinguishable() -> None:
    drawn = [coverage(shape, box_at(20, 20, 14), WHOLE, WHOLE) for shape in SHAPES]
    for i, first in enumerate(drawn):
        for second in drawn[i + 1 :]:
            assert np.abs(first - second).sum() > 15


def test_rendering_is_deterministic() -> None:
    scene = make_scene(5, 5)
    assert render(scene).tobytes() == render(scene).tobytes()
