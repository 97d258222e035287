"""COCO captions, alignment prompts, and referring expressions in MDETR's form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpt.data.example import BoxCorners, Span
from dpt.data.files.reading import Row, is_whole, read_json, shown
from dpt.data.images import Size
from dpt.errors import DataError, OnDataError, raise_error


@dataclass(frozen=True)
class Captions:
    file_names: dict[int, str]
    """By image id."""
    texts: dict[int, list[str]]
    """By image id."""


def read_captions(file: Path, on_fault: OnDataError = raise_error) -> Captions:
    document = Row(read_json(file), str(file))
    captions = Captions({}, {})
    for nth, content in enumerate(document.get("images", list)):
        try:
            row = Row(content, f"{file}, images[{nth}]")
            id_ = row.get("id", int)
            if id_ in captions.file_names:
                row.fail(f"the id {id_} occurs twice")
            captions.file_names[id_] = row.file_name("file_name")
        except DataError as fault:
            on_fault(fault)
    ids: set[int] = set()
    for nth, content in enumerate(document.get("annotations", list)):
        try:
            row = Row(content, f"{file}, annotations[{nth}]")
            id_, image_id = row.get("id", int), row.get("image_id", int)
            if id_ in ids:
                row.fail(f"the id {id_} occurs twice")
            ids.add(id_)
            if image_id not in captions.file_names:
                row.fail(f"there is no image with the id {image_id}")
            captions.texts.setdefault(image_id, []).append(row.text("caption"))
        except DataError as fault:
            on_fault(fault)
    return captions


def read_prompts(file: Path, on_fault: OnDataError = raise_error) -> list[str]:
    """Prompts under the key `captions` (published files) or `caption` (published code)."""
    content = read_json(file)
    if not isinstance(content, list):
        raise DataError(f"{file} should hold a list of prompts, not {shown(content)}")
    prompts: list[str] = []
    for nth, entry in enumerate(content):
        try:
            row = Row(entry, f"{file}, row {nth}")
            prompts.append(row.text("captions" if "captions" in row else "caption").strip())
        except DataError as fault:
            on_fault(fault)
    if not prompts:
        on_fault(DataError(f"{file} has no usable prompt"))
    return prompts


EDGE_TOLERANCE = 1.0
"""Pixels by which rounding may let a box exceed its image; it is clipped there."""


LONGEST_SIDE = 2**31
"""Pixels; no image format allows more."""


@dataclass(frozen=True, slots=True)
class SpannedBox:
    corners: BoxCorners
    """In pixels of the annotated image."""
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class ExpressionRow:
    where: str
    id: int
    file_name: str
    text: str
    size: Size | None
    boxes: tuple[SpannedBox, ...]
    """Empty if the only box is that of a crowd, which MDETR leaves out."""
    original_id: int | None
    dataset: str | None


def read_expressions(file: Path, on_fault: OnDataError = raise_error) -> list[ExpressionRow]:
    document = Row(read_json(file), str(file))
    annotations = _annotations_by_image(document, on_fault)
    rows: list[ExpressionRow] = []
    ids: set[int] = set()
    for row in _expression_rows(document, "images", on_fault):
        try:
            _refuse_duplicate(row, ids)
            rows.append(_expression_row(row, annotations))
        except DataError as fault:
            on_fault(fault)
    _refuse_unknown_images(document, annotations, on_fault)
    if not rows:
        on_fault(DataError(f"{file} has no usable expression"))
    return rows


def _expression_rows(document: Row, key: str, on_fault: OnDataError) -> Iterator[Row]:
    for nth, content in enumerate(document.get(key, list)):
        try:
            row = Row(content, f"{document.where}, {key}[{nth}]")
        except DataError as fault:
            on_fault(fault)
        else:
            yield row


def _annotations_by_image(document: Row, on_fault: OnDataError) -> dict[int, list[Row]]:
    by_image: dict[int, list[Row]] = {}
    ids: set[int] = set()
    for row in _expression_rows(document, "annotations", on_fault):
        try:
            _refuse_duplicate(row, ids)
            by_image.setdefault(row.get("image_id", int), []).append(row)
        except DataError as fault:
            on_fault(fault)
    return by_image


def _refuse_duplicate(row: Row, ids: set[int]) -> None:
    id_ = row.get("id", int)
    if id_ in ids:
        row.fail(f"the id {id_} occurs twice")
    ids.add(id_)


def _refuse_unknown_images(document: Row, annotations: dict[int, list[Row]], on_fault: OnDataError) -> None:
    images = [content for content in document.get("images", list) if isinstance(content, dict)]
    ids = {content["id"] for content in images if is_whole(content.get("id"))}
    for image_id, rows in annotations.items():
        if image_id not in ids:
            on_fault(DataError(f"{rows[0].where}: there is no image with the id {image_id}"))


def _expression_row(row: Row, annotations: dict[int, list[Row]]) -> ExpressionRow:
    id_, text, size = row.get("id", int), row.text("caption"), _size(row)
    own = annotations.get(id_, [])
    if not own:
        row.fail("there is no annotation, and so no box, for this image")
    return ExpressionRow(
        where=row.where,
        id=id_,
        file_name=row.file_name("file_name"),
        text=text,
        size=size,
        boxes=tuple(
            SpannedBox(_corners(annotation, size), _spans(annotation, text))
            for annotation in own
            if annotation.content.get("iscrowd", 0) != 1
        ),
        original_id=row.get("original_id", int) if "original_id" in row else None,
        dataset=row.text("dataset_name") if "dataset_name" in row else None,
    )


def _size(row: Row) -> Size | None:
    if "width" not in row and "height" not in row:
        return None
    width, height = row.get("width", int), row.get("height", int)
    if not (1 <= width <= LONGEST_SIDE and 1 <= height <= LONGEST_SIDE):
        row.fail(f"an image cannot have {shown(width)} by {shown(height)} pixels")
    return width, height


def _corners(row: Row, size: Size | None) -> BoxCorners:
    x, y, width, height = row.numbers("bbox", 4)
    box = (x, y, x + width, y + height)
    if width <= 0 or height <= 0:
        row.fail(f"the box {[x, y, width, height]} has no area")
    return box if size is None else cut_to_picture(box, size, row.where)


def cut_to_picture(box: BoxCorners, size: Size, where: str) -> BoxCorners:
    """The box, clipped to its image if rounding let it exceed it."""
    (x0, y0, x1, y1), (width, height) = box, size
    cut = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    too_far = max(-x0, -y0, x1 - width, y1 - height) > EDGE_TOLERANCE
    if too_far or cut[2] <= cut[0] or cut[3] <= cut[1]:
        raise DataError(
            f"{where}: the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) is not inside its image"
            f" of {width}x{height} pixels"
        )
    return cut


def _spans(row: Row, text: str) -> tuple[Span, ...]:
    spans = row.get("tokens_positive" if "tokens_positive" in row else "tokens", list)
    if not spans:
        row.fail("no span says which words name the box")
    return tuple(_span(span, text, row) for span in spans)


def _span(span: Any, text: str, row: Row) -> Span:
    if not (isinstance(span, list) and len(span) == 2 and all(is_whole(edge) for edge in span)):
        row.fail(f"a span should be two whole numbers, not {shown(span)}")
    first, last = span
    if not 0 <= first < last <= len(text):
        row.fail(f"the span {shown(span)} is not inside the {len(text)} characters of {shown(text)}")
    return first, last
