"""The oracle does not guess: deformed objects are unreadable, faint or tiny ones ignored, and any image is accepted."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpt.claims.judge import Detections
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, WORLDS, make_scene
from dpt.detect.accuracy import refusals
from dpt.detect.base import Image
from dpt.detect.oracle.oracle import Oracle
from dpt.detect.test_images import DEFORMATIONS

MOST_NAMED = {
    ("between two shapes", "full"): 0.15,
    ("two-coloured", "full"): 0.15,  # the upper half of a triangle is a triangle
    ("two-coloured", "pocket"): 0.15,
}


@pytest.mark.parametrize("world", ["full", "pocket"])
@pytest.mark.parametrize("deformation", DEFORMATIONS)
def test_deformed_objects_are_rarely_named(deformation: str, world: str) -> None:
    pictures = [DEFORMATIONS[deformation](77, index, WORLDS[world]) for index in range(50)]
    named, _, _ = refusals(Oracle(WORLDS[world]).detect(pictures))
    assert named <= MOST_NAMED.get((deformation, world), 0.04) * len(pictures)


def painted(where: tuple[slice, slice], colour: tuple[int, int, int]) -> Image:
    image = np.full((64, 64, 3), 246, np.uint8)
    image[where] = colour
    return image


def test_faint_smudges_and_flecks_are_ignored() -> None:
    faint = painted((slice(20, 41), slice(20, 41)), (246, 225, 225))
    fleck = painted((slice(20, 23), slice(20, 24)), (214, 40, 48))
    assert Oracle().detect([faint, fleck]) == [Detections(), Detections()]


def test_a_smudge_beside_an_object_does_not_hide_it() -> None:
    image = render(make_scene(77, 0, POCKET_WORLD)).copy()
    clean = Oracle(POCKET_WORLD).read(image)
    image[:3, :4] = (200, 230, 200)
    smudged = Oracle(POCKET_WORLD).read(image)
    assert [(o.label, o.colour) for o in smudged.objects] == [(o.label, o.colour) for o in clean.objects]
    assert not smudged.unreadable


@pytest.mark.parametrize("level", [0, 127, 255])
def test_a_plain_image_has_no_detections(level: int) -> None:
    assert Oracle().read(np.full((64, 64, 3), level, np.uint8)) == Detections()


def test_natural_looking_noise_and_gradients_are_not_named() -> None:
    rng = np.random.default_rng(7)
    for power in (0.5, 1.0, 1.5, 2.0):
        frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None]) + 1 / 64
        for _ in range(10):
            spectrum = np.fft.fft2(rng.normal(size=(64, 64, 3)), axes=(0, 1)) / frequency[..., None] ** power
            field = np.fft.ifft2(spectrum, axes=(0, 1)).real
            image = np.clip(128 + 50 * field / field.std(), 0, 255).astype(np.uint8)
            assert not Oracle().read(image).objects
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    assert not Oracle().read(np.dstack([np.broadcast_to(ramp, (64, 64))] * 3)).objects


@st.composite
def pictures(draw: st.DrawFn) -> Image:
    """Noise, a few levels, or coarse blocks, of any size."""
    height, width = draw(st.integers(0, 90)), draw(st.integers(0, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    block = draw(st.integers(1, 24))
    levels = draw(st.integers(1, 256))
    coarse = rng.integers(0, levels, (height // block + 1, width // block + 1, 3)) * (255 // max(levels - 1, 1))
    return np.kron(coarse, np.ones((block, block, 1)))[:height, :width].astype(np.uint8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(pictures())
def test_any_image_is_read(image: Image) -> None:
    detections = Oracle().read(image)
    assert len(detections.objects) + len(detections.unreadable) <= Oracle().limits.blobs
    for thing in detections.objects:
        assert 0.5 <= thing.confidence <= 1
        assert thing.box.width > 0 < thing.box.height


def test_a_large_texture_takes_bounded_time() -> None:
    rng = np.random.default_rng(7)
    dots = np.where(rng.random((80, 80, 1)) < 0.3, rng.integers(0, 256, (80, 80, 3)), 246)
    image = np.kron(dots, np.ones((8, 8, 1))).astype(np.uint8)
    started = time.process_time()
    assert not Oracle().read(image).objects
    assert time.process_time() - started < 3


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 4), (3, 64, 64)])
def test_an_image_that_is_not_rgb_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="height, width, 3"):
        Oracle().read(np.zeros(shape, np.uint8))
