"""Pictures in the page itself, with the boxes that were counted, as many as a given size holds."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from dpt.evaluation.bench.page.cases import Case, Section
from dpt.evaluation.bench.pictures import open_picture
from dpt.evaluation.bench.rows import Row, SeenObject
from dpt.evaluation.suites.base import Layout, picture_file

SMALL = 128
"""Pixels; pictures up to this are enlarged with their pixels kept sharp."""
WIDEST = 256
"""Pixels; larger pictures are embedded reduced to this, as JPEG."""


@dataclass
class Album:
    """Embeds pictures until the budget is spent, and knows how many were left out."""

    folder: Path
    layout: Layout
    budget: int
    """Bytes of embedded pictures, in all."""
    spent: int = 0
    shown: int = 0
    left_out: int = 0
    reduced: bool = False

    def section(self, section: Section, most: int) -> str:
        figures = []
        for case in section.cases[:most]:
            figure = self._figure(case)
            if figure is None:
                break
            figures.append(figure)
        self.shown += len(figures)
        self.left_out += len(section.cases) - len(figures)
        told = f"{len(figures):,} of {len(section.cases):,} shown"
        return f'<h3>{escape(section.title)} <small>{told}</small></h3><div class="cases">{"".join(figures)}</div>'

    def _figure(self, case: Case) -> str | None:
        uris = {name: self._uri(name, row) for name, row in case.rows.items()}
        size = sum(len(uri) for uri, _ in uris.values())
        if self.spent + size > self.budget:
            return None
        self.spent += size
        one = case.any
        shots = "".join(_shot(name, case.rows[name], uri, extent) for name, (uri, extent) in uris.items())
        where = escape(f"{one.category}, {one.prompt_id}, picture {one.index}")
        return (
            f'<article><p class="prompt">{escape(one.prompt)}</p><p class="where">{where}</p>'
            f'<div class="shots">{shots}</div></article>'
        )

    def _uri(self, method: str, row: Row) -> tuple[str, tuple[int, int]]:
        """The picture as text, and its own extent, which its boxes are told in."""
        file = self.folder / method / picture_file(self.layout, row.prompt_id, row.index)
        picture = open_picture(file)
        if max(picture.size) <= WIDEST:
            return _data("png", _encoded(picture, "PNG")), picture.size
        self.reduced = True
        small = picture.copy()
        small.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
        return _data("jpeg", _encoded(small, "JPEG")), picture.size


def _encoded(picture: Image.Image, kind: str) -> bytes:
    stream = BytesIO()
    picture.save(stream, kind, **({"optimize": True} if kind == "PNG" else {"quality": 85}))
    return stream.getvalue()


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _shot(name: str, row: Row, uri: str, extent: tuple[int, int]) -> str:
    width, height = extent
    state = {True: "right", False: "wrong", None: "unjudged"}[row.passed]
    boxes = "".join(_box(number, one) for number, one in enumerate(row.objects, start=1))
    mark = width / 14
    numbers = "".join(
        f'<text x="{one.box[0] + 0.15 * mark:.1f}" y="{one.box[1] + mark:.1f}" font-size="{mark:.1f}">{number}</text>'
        for number, one in enumerate(row.objects, start=1)
    )
    small = ' class="small"' if max(extent) <= SMALL else ""
    alt = escape(f"{name}: {row.prompt}")
    return (
        f'<figure class="{state}"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{alt}">'
        f'<image{small} href="{uri}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
        f"{boxes}{numbers}</svg>"
        f"<figcaption><b>{escape(name)}</b> <span>{_verdict(row)}</span>{_details(row)}</figcaption></figure>"
    )


def _box(number: int, one: SeenObject) -> str:
    x0, y0, x1, y1 = one.box
    return (
        f'<rect class="box" x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}">'
        f"<title>{number}: {escape(_named(one))}</title></rect>"
    )


def _named(one: SeenObject) -> str:
    words = " ".join(word for word in (one.colour, one.label) if word)
    return f"{words} {one.confidence:.2f}"


def _verdict(row: Row) -> str:
    said = {True: "right", False: "wrong", None: "not judged"}[row.passed]
    scores = {"CLIP": row.clip, "ITM": row.itm}
    return ", ".join([said, *(f"{name} {value:.3f}" for name, value in scores.items() if value is not None)])


def _details(row: Row) -> str:
    """Each requirement and whether it was met, then what was seen."""
    atoms = "".join(
        f'<li class="{"met" if atom.met else "unmet"}">{"✓" if atom.met else "✗"} {escape(atom.text)}</li>'
        for atom in row.atoms
    )
    seen = "; ".join(f"{number}: {_named(one)}" for number, one in enumerate(row.objects, start=1))
    if row.unreadable:
        seen = "; ".join(part for part in (seen, f"{row.unreadable} unreadable") if part)
    return (f"<ul>{atoms}</ul>" if atoms else "") + (f'<p class="seen">{escape(seen)}</p>' if seen else "")
