"""The contact sheet: enlarged images, captions within their cells."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from dpt.evaluation.contact_sheet import FONT_SIZE, PAPER, VISIBLE, contact_sheet, wrap

FONT = ImageFont.load_default(FONT_SIZE)
LONG = "a very small purple triangle to the left of a large yellow square with no circles anywhere at all"


@pytest.mark.parametrize("text", [LONG * 3, "x" * 400, "", "one", "W" * 30 + " " + LONG])
@pytest.mark.parametrize("width", [40, 100, 192])
def test_no_line_is_wider_than_its_cell(text: str, width: int) -> None:
    lines = wrap(text, FONT, width, 3)
    assert len(lines) <= 3
    assert all(FONT.getlength(line) <= width for line in lines)


def test_text_that_does_not_fit_ends_in_an_ellipsis() -> None:
    assert " ".join(wrap("a red circle and a blue square", FONT, 100, 5)) == "a red circle and a blue square"
    assert wrap(LONG * 3, FONT, 100, 2)[-1].endswith("...")


def test_small_pictures_are_enlarged_by_an_integer_factor() -> None:
    red = Image.new("RGB", (64, 64), (255, 0, 0))
    red.putpixel((0, 0), (0, 0, 255))
    sheet = np.array(contact_sheet([red], ["one"]))
    factor = VISIBLE // 64
    assert (sheet == (255, 0, 0)).all(axis=-1).sum() == (64 * 64 - 1) * factor**2
    assert (sheet == (0, 0, 255)).all(axis=-1).sum() == factor**2


def test_large_pictures_keep_their_size() -> None:
    sheet = contact_sheet([Image.new("RGB", (512, 300), (1, 2, 3))], ["x"])
    assert (np.array(sheet) == (1, 2, 3)).all(axis=-1).sum() == 512 * 300


def test_all_pictures_are_on_the_sheet_and_captions_stay_within_it() -> None:
    colours = [(10 * number, 255 - 10 * number, 40) for number in range(7)]
    pictures = [Image.new("RGB", (64, 64), colour) for colour in colours]
    sheet = np.array(contact_sheet(pictures, [LONG * 2] * 7, columns=3, title=LONG * 9))
    for colour in colours:
        assert (sheet == colour).all(axis=-1).sum() == VISIBLE**2
    for border in (sheet[:4], sheet[-2:], sheet[:, :4], sheet[:, -4:]):
        assert (border == PAPER).all()


def test_pictures_and_captions_must_match() -> None:
    with pytest.raises(ValueError, match="1 images and 0 captions"):
        contact_sheet([Image.new("RGB", (8, 8))], [])
