"""The pictures of a report: which are shown, and how they are embedded."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from dpt.evaluation.bench.requests import open_image
from dpt.evaluation.bench.results import ImageResult, SeenObject
from dpt.evaluation.suites.base import Layout, image_file

Key = tuple[str, int]


@dataclass(frozen=True)
class Case:
    """One prompt and one noise, as each method drew it."""

    rows: dict[str, ImageResult]

    @property
    def any(self) -> ImageResult:
        return next(iter(self.rows.values()))


@dataclass(frozen=True)
class Section:
    title: str
    cases: tuple[Case, ...]


def sections(found: Mapping[str, Sequence[ImageResult]], baseline: str) -> list[Section]:
    """Every picture is in one of them: none is chosen by hand, and none is left out before the size is known."""
    by_key = {name: {row.key: row for row in rows} for name, rows in found.items()}
    shared = [row.key for row in found[baseline] if all(row.key in own for own in by_key.values())]
    cases = [Case({name: own[key] for name, own in by_key.items()}) for key in shared]
    if len(found) == 1:
        return _nonempty([Section("Wrong", _of(cases, False)), Section("Right", _of(cases, True)),
                      Section("Not judged", _of(cases, None))])  # fmt: skip
    by_prompt: dict[str, list[float]] = {}
    for case in cases:
        by_prompt.setdefault(case.any.prompt_id, []).append(gain(case, baseline))
    ranked = sorted(cases, key=lambda case: (gain(case, baseline), _mean(by_prompt[case.any.prompt_id])))
    worse = tuple(case for case in ranked if gain(case, baseline) < 0)
    better = tuple(case for case in reversed(ranked) if gain(case, baseline) >= 0 and not _alike(case))
    alike = [case for case in cases if _alike(case)]
    return _nonempty([
        Section(f"Worse than {baseline}, the worst first", worse),
        Section(f"Better than {baseline}, and none worse", better),
        Section("Wrong by all", _of(alike, False)),
        Section("Right by all", _of(alike, True)),
        Section("Alike", _of(alike, None)),
    ])  # fmt: skip


def gain(case: Case, baseline: str) -> float:
    """Of the method that did worst: right or wrong beside the baseline or, where nothing was judged, CLIP's cosine."""
    base = case.rows[baseline]
    return min(
        _case_value(row) - _case_value(base)
        for name, row in case.rows.items()
        if name != baseline or len(case.rows) == 1
    )


def _alike(case: Case) -> bool:
    return len({_case_value(row) for row in case.rows.values()}) == 1


def _case_value(row: ImageResult) -> float:
    return float(row.passed) if row.passed is not None else row.clip or 0.0


def _of(cases: Sequence[Case], passed: bool | None) -> tuple[Case, ...]:
    return tuple(case for case in cases if case.any.passed is passed)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _nonempty(found: Sequence[Section]) -> list[Section]:
    return [section for section in found if section.cases]


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
        shots = "".join(_image_html(name, case.rows[name], uri, extent) for name, (uri, extent) in uris.items())
        where = escape(f"{one.category}, {one.prompt_id}, picture {one.index}")
        return (
            f'<article><p class="prompt">{escape(one.prompt)}</p><p class="where">{where}</p>'
            f'<div class="shots">{shots}</div></article>'
        )

    def _uri(self, method: str, row: ImageResult) -> tuple[str, tuple[int, int]]:
        """The picture as text, and its own extent, which its boxes are told in."""
        file = self.folder / method / image_file(self.layout, row.prompt_id, row.index)
        picture = open_image(file)
        if max(picture.size) <= WIDEST:
            return _data_uri("png", _encode_image(picture, "PNG")), picture.size
        self.reduced = True
        small = picture.copy()
        small.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
        return _data_uri("jpeg", _encode_image(small, "JPEG")), picture.size


def _encode_image(picture: Image.Image, kind: str) -> bytes:
    stream = BytesIO()
    picture.save(stream, kind, **({"optimize": True} if kind == "PNG" else {"quality": 85}))
    return stream.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _image_html(name: str, row: ImageResult, uri: str, extent: tuple[int, int]) -> str:
    width, height = extent
    state = {True: "right", False: "wrong", None: "unjudged"}[row.passed]
    boxes = "".join(_box_svg(number, one) for number, one in enumerate(row.objects, start=1))
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
        f"<figcaption><b>{escape(name)}</b> <span>{_verdict_html(row)}</span>{_details_html(row)}</figcaption></figure>"
    )


def _box_svg(number: int, one: SeenObject) -> str:
    x0, y0, x1, y1 = one.box
    return (
        f'<rect class="box" x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}">'
        f"<title>{number}: {escape(_box_label(one))}</title></rect>"
    )


def _box_label(one: SeenObject) -> str:
    words = " ".join(word for word in (one.colour, one.label) if word)
    return f"{words} {one.confidence:.2f}"


def _verdict_html(row: ImageResult) -> str:
    said = {True: "right", False: "wrong", None: "not judged"}[row.passed]
    scores = {"CLIP": row.clip, "ITM": row.itm}
    return ", ".join([said, *(f"{name} {value:.3f}" for name, value in scores.items() if value is not None)])


def _details_html(row: ImageResult) -> str:
    """Each requirement and whether it was met, then what was seen."""
    atoms = "".join(
        f'<li class="{"met" if atom.met else "unmet"}">{"✓" if atom.met else "✗"} {escape(atom.text)}</li>'
        for atom in row.atoms
    )
    seen = "; ".join(f"{number}: {_box_label(one)}" for number, one in enumerate(row.objects, start=1))
    if row.unreadable:
        seen = "; ".join(part for part in (seen, f"{row.unreadable} unreadable") if part)
    return (f"<ul>{atoms}</ul>" if atoms else "") + (f'<p class="seen">{escape(seen)}</p>' if seen else "")
