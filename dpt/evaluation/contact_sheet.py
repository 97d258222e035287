"""A contact sheet: a grid of small images with captions."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

# Images smaller than this are enlarged by a whole factor until they are about this wide.
VISIBLE = 192

MARGIN = 8

LINES = 3

FONT_SIZE = 13

PAPER, INK = (255, 255, 255), (24, 24, 24)

FRAMES = {True: (26, 127, 55), False: (207, 34, 46), None: PAPER}
"""Colours of the frame of a right, a wrong and an unjudged image."""

FRAME = 3


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    title: str = "",
    marks: Sequence[bool | None] = (),
    row_titles: Sequence[str] = (),
) -> Image.Image:
    """A grid of images, each above its caption; text is wrapped and shortened to fit its cell.

    With `marks`, right images have a green frame and wrong ones a red one. Row titles stand above their row.
    """
    if len(pictures) != len(captions) or not pictures:
        raise ValueError(
            f"{len(pictures)} images and {len(captions)} captions given; the numbers must be equal and not 0"
        )
    shown = [_enlarge(picture.convert("RGB")) for picture in pictures]
    cell_width = max(picture.width for picture in shown)
    picture_height = max(picture.height for picture in shown)
    columns = min(columns or _columns_for(len(shown), cell_width), len(shown))
    rows = math.ceil(len(shown) / columns)

    font = ImageFont.load_default(FONT_SIZE)
    line_height = sum(font.getmetrics())  # type: ignore[union-attr]
    labels = [wrap(caption, font, cell_width, LINES) for caption in captions]
    row_title_height = line_height + MARGIN // 2 if row_titles else 0
    cell_height = row_title_height + picture_height + MARGIN // 2 + max(map(len, labels)) * line_height
    width = columns * (cell_width + MARGIN) + MARGIN
    header = wrap(title, font, width - 2 * MARGIN, LINES)
    top = MARGIN + len(header) * line_height + (MARGIN if header else 0)

    sheet = Image.new("RGB", (width, top + rows * (cell_height + MARGIN)), PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, header, MARGIN, MARGIN, font, line_height)
    for number, (picture, label) in enumerate(zip(shown, labels, strict=True)):
        row, column = divmod(number, columns)
        left = MARGIN + column * (cell_width + MARGIN)
        upper = top + row * (cell_height + MARGIN) + row_title_height
        place = (left + (cell_width - picture.width) // 2, upper)
        if row_titles and column == 0:
            row_title = wrap(row_titles[row], font, width - 2 * MARGIN, 1)
            _write(pen, row_title, left, upper - row_title_height, font, line_height)
        if marks:
            outer = (place[0] - FRAME, place[1] - FRAME, place[0] + picture.width + FRAME - 1)
            pen.rectangle((*outer, place[1] + picture.height + FRAME - 1), fill=FRAMES[marks[number]])
        sheet.paste(picture, place)
        _write(pen, label, left, upper + picture_height + MARGIN // 2, font, line_height)
    return sheet


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets one below the other."""
    page = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), PAPER)
    for number, sheet in enumerate(sheets):
        page.paste(sheet, (0, sum(s.height for s in sheets[:number])))
    return page


def wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """Wrap text to at most `lines` lines of at most `width` pixels; text that does not fit ends in an ellipsis."""
    wrapped: list[str] = []
    line = ""
    for word in text.split():
        while word:
            candidate = f"{line} {word}" if line else word
            if font.getlength(candidate) <= width:
                line, word = candidate, ""
            elif line:
                wrapped.append(line)
                line = ""
            else:
                # Break a word that is wider than the cell.
                ends = range(1, len(word) + 1)
                fits = max(1, bisect_right(ends, width, key=lambda end: math.ceil(font.getlength(word[:end]))))
                wrapped.append(word[:fits])
                word = word[fits:]
    if line:
        wrapped.append(line)
    if len(wrapped) <= lines:
        return wrapped
    last = wrapped[lines - 1]
    while last and font.getlength(f"{last}...") > width:
        last = last[:-1]
    return [*wrapped[: lines - 1], f"{last.rstrip()}..."]


def _enlarge(picture: Image.Image) -> Image.Image:
    factor = max(1, round(VISIBLE / picture.width))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _columns_for(count: int, cell_width: int) -> int:
    """As square as the count allows, within about 1600 pixels."""
    return max(1, min(math.ceil(math.sqrt(count)), 1600 // (cell_width + MARGIN)))


def _write(
    pen: ImageDraw.ImageDraw,
    lines: Sequence[str],
    left: int,
    upper: int,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    line_height: int,
) -> None:
    for number, line in enumerate(lines):
        pen.text((left, upper + number * line_height), line, fill=INK, font=font)
