from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from dpt.data.images import LEAST_IN_VIEW, Framing

sizes = st.tuples(st.integers(2, 900), st.integers(2, 900))


@st.composite
def sizes_with_boxes(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
    width, height = draw(sizes)
    x0, x1 = sorted(draw(st.tuples(st.floats(0, width), st.floats(0, width))))
    y0, y1 = sorted(draw(st.tuples(st.floats(0, height), st.floats(0, height))))
    assume(x1 - x0 > 1e-3 and y1 - y0 > 1e-3)
    return (width, height), (x0, y0, x1, y1)


@given(sizes_with_boxes(), st.booleans())
def test_framed_boxes_stay_inside_the_image(
    drawn: tuple[tuple[int, int], tuple[float, float, float, float]], crop: bool
) -> None:
    size, box = drawn
    framed = Framing(64, center_crop=crop).box(box, size)
    if framed is None:
        assert crop
        return
    cx, cy, width, height = framed
    assert width > 0 and height > 0
    assert min(cx - width / 2, cy - height / 2) >= -1e-9
    assert max(cx + width / 2, cy + height / 2) <= 1 + 1e-9


def test_squash_scales_both_sides() -> None:
    assert Framing(64).box((10, 20, 30, 60), (100, 200)) == pytest.approx((0.2, 0.2, 0.2, 0.2))


def test_center_crop_moves_and_clips_boxes() -> None:
    crop = Framing(64, center_crop=True)
    assert crop.window((200, 100)) == (50, 0, 150, 100)
    assert crop.box((60, 10, 80, 30), (200, 100)) == pytest.approx((0.2, 0.2, 0.2, 0.2))
    assert crop.box((40, 0, 60, 100), (200, 100)) == pytest.approx((0.05, 0.5, 0.1, 1.0)), "exactly half is visible"
    assert crop.box((39, 0, 60, 100), (200, 100)) is None, "less than half is visible"
    assert crop.box((0, 0, 20, 20), (200, 100)) is None
    assert LEAST_IN_VIEW == 0.5


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("size", [(200, 100), (100, 200), (90, 90), (301, 100)])
def test_framed_box_surrounds_the_object(crop: bool, size: tuple[int, int]) -> None:
    width, height = size
    box = (width // 2 - 30, height // 2 - 20, width // 2 + 35, height // 2 + 25)
    image = Image.new("RGB", size, "black")
    image.paste((255, 255, 255), box)
    framing = Framing(96, center_crop=crop)
    pixels = framing.pixels(image)
    assert pixels.shape == (3, 96, 96) and pixels.min() >= -1 and pixels.max() <= 1
    white = np.argwhere(pixels[0].numpy() > 0)
    (top, left), (bottom, right) = white.min(0), white.max(0) + 1
    framed = framing.box(box, size)
    assert framed is not None
    cx, cy, w, h = (96 * share for share in framed)
    assert (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) == pytest.approx((left, top, right, bottom), abs=1.01)


def test_image_of_the_target_size_is_unchanged() -> None:
    values = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    pixels = Framing(8).pixels(Image.fromarray(values))
    np.testing.assert_allclose((pixels.permute(1, 2, 0).numpy() + 1) * 127.5, values, atol=1e-4)
