"""The images of a report: selects cases and embeds their images."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from dpt.evaluation.bench.columns import UNJUDGED, Booleans, Floats, Integers, MethodResults
from dpt.evaluation.bench.results import DetectedObject, ImageResult, open_image
from dpt.evaluation.suites.base import Layout, image_file


@dataclass(frozen=True)
class Case:
    """The images of all methods for the same prompt and initial noise."""

    results: dict[str, ImageResult]

    @property
    def first(self) -> ImageResult:
        return next(iter(self.results.values()))


@dataclass(frozen=True)
class Cases(Sequence[Case]):
    """Loaded lazily from the results files: a report shows few of many."""

    methods: Mapping[str, MethodResults]
    lines: Integers
    """(cases, methods)"""

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> Cases: ...
    def __getitem__(self, index: int | slice) -> Case | Cases:
        if isinstance(index, slice):
            return Cases(self.methods, self.lines[index])
        lines = zip(self.methods.items(), self.lines[index].tolist(), strict=True)
        return Case({name: results.result(line) for (name, results), line in lines})

    def __iter__(self) -> Iterator[Case]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Section:
    title: str
    cases: Cases


def sections(methods: Mapping[str, MethodResults], baseline: str) -> list[Section]:
    """Sort the images that all methods have into sections, without empty sections."""
    line_maps = [results.line_of for results in methods.values()]
    base = methods[baseline]
    shared = [line for line in range(len(base)) if all(base.key(line) in line_of for line_of in line_maps)]
    lines = np.array([[line_of[base.key(line)] for line_of in line_maps] for line in shared], np.int64)
    lines = lines.reshape(-1, len(line_maps))
    columns = zip(methods.values(), lines.T, strict=True)
    values = np.stack([_case_values(results, column) for results, column in columns], 1)
    passed = base.passed[shared]

    def make_section(title: str, selected: Booleans | Integers) -> Section:
        return Section(title, Cases(methods, lines[selected]))

    if len(methods) == 1:
        candidates = [make_section("Wrong", passed == 0), make_section("Right", passed == 1),
                      make_section("Not judged", passed == UNJUDGED)]  # fmt: skip
        return [section for section in candidates if section.cases]
    column = list(methods).index(baseline)
    gain = (np.delete(values, column, 1) - values[:, column : column + 1]).min(1)
    ranked = np.lexsort((_mean_by(base.prompt[shared], gain), gain))
    alike = (values == values[:, :1]).all(1)
    backwards = ranked[::-1]
    candidates = [
        make_section(f"Worse than {baseline}, the worst first", ranked[gain[ranked] < 0]),
        make_section(f"Better than {baseline}, and none worse", backwards[(gain[backwards] >= 0) & ~alike[backwards]]),
        make_section("Wrong by all", alike & (passed == 0)),
        make_section("Right by all", alike & (passed == 1)),
        make_section("Alike", alike & (passed == UNJUDGED)),
    ]
    return [section for section in candidates if section.cases]


def _case_values(results: MethodResults, lines: Integers) -> Floats:
    """1 or 0 where judged, otherwise the CLIP score."""
    passed = results.passed[lines]
    return np.where(passed == UNJUDGED, np.nan_to_num(results.clip[lines]), passed)


def _mean_by(group: Integers, values: Floats) -> Floats:
    """For each value, the mean of its group."""
    means: Floats = (np.bincount(group, values) / np.maximum(np.bincount(group), 1))[group]
    return means


SMALL = 128
"""Pixels; images up to this are enlarged with their pixels kept sharp."""

WIDEST = 256
"""Pixels; larger images are embedded reduced to this, as JPEG."""


@dataclass
class Album:
    """Embeds images up to the budget, and counts those left out."""

    folder: Path
    layout: Layout
    budget: int
    """Bytes of all embedded images."""
    spent: int = 0
    shown: int = 0
    left_out: int = 0
    reduced: bool = False

    def section(self, section: Section, max_cases: int) -> str:
        figures = []
        for case in section.cases[:max_cases]:
            figure = self._figure(case)
            if figure is None:
                break
            figures.append(figure)
        self.shown += len(figures)
        self.left_out += len(section.cases) - len(figures)
        shown = f"{len(figures):,} of {len(section.cases):,} shown"
        return f'<h3>{escape(section.title)} <small>{shown}</small></h3><div class="cases">{"".join(figures)}</div>'

    def _figure(self, case: Case) -> str | None:
        uris = {name: self._uri(name, result) for name, result in case.results.items()}
        size = sum(len(uri) for uri, _ in uris.values())
        if self.spent + size > self.budget:
            return None
        self.spent += size
        first = case.first
        shots = "".join(_image_html(name, case.results[name], uri, extent) for name, (uri, extent) in uris.items())
        where = escape(f"{first.category}, {first.prompt_id}, image {first.index}")
        return (
            f'<article><p class="prompt">{escape(first.prompt)}</p><p class="where">{where}</p>'
            f'<div class="shots">{shots}</div></article>'
        )

    def _uri(self, method: str, result: ImageResult) -> tuple[str, tuple[int, int]]:
        """The image as a data URI, and its original size, in whose pixels its boxes are."""
        file = self.folder / method / image_file(self.layout, result.prompt_id, result.index)
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


def _image_html(name: str, result: ImageResult, uri: str, extent: tuple[int, int]) -> str:
    width, height = extent
    state = {True: "right", False: "wrong", None: "unjudged"}[result.passed]
    boxes = "".join(_box_svg(number, detected) for number, detected in enumerate(result.objects, start=1))
    mark = width / 14
    numbers = "".join(
        f'<text x="{x0 + 0.15 * mark:.1f}" y="{y0 + mark:.1f}" font-size="{mark:.1f}">{number}</text>'
        for number, (x0, y0, *_) in enumerate((detected.box for detected in result.objects), start=1)
    )
    small = ' class="small"' if max(extent) <= SMALL else ""
    alt = escape(f"{name}: {result.prompt}")
    return (
        f'<figure class="{state}"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{alt}">'
        f'<image{small} href="{uri}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
        f"{boxes}{numbers}</svg>"
        f"<figcaption><b>{escape(name)}</b> <span>{_verdict_html(result)}</span>{_details_html(result)}</figcaption>"
        "</figure>"
    )


def _box_svg(number: int, detected: DetectedObject) -> str:
    x0, y0, x1, y1 = detected.box
    return (
        f'<rect class="box" x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}">'
        f"<title>{number}: {escape(_box_label(detected))}</title></rect>"
    )


def _box_label(detected: DetectedObject) -> str:
    words = " ".join(word for word in (detected.colour, detected.label) if word)
    return f"{words} {detected.confidence:.2f}"


def _verdict_html(result: ImageResult) -> str:
    verdict = {True: "right", False: "wrong", None: "not judged"}[result.passed]
    scores = {"CLIP": result.clip, "ITM": result.itm, "preference": result.hps}
    return ", ".join([verdict, *(f"{name} {value:.3f}" for name, value in scores.items() if value is not None)])


def _details_html(result: ImageResult) -> str:
    """Each claim and whether it holds, then the detections."""
    atoms = "".join(
        f'<li class="{"met" if atom.met else "unmet"}">{"✓" if atom.met else "✗"} {escape(atom.text)}</li>'
        for atom in result.atoms
    )
    parts = [f"{number}: {_box_label(detected)}" for number, detected in enumerate(result.objects, start=1)]
    if result.unreadable:
        parts.append(f"{result.unreadable} unreadable")
    detections = "; ".join(parts)
    return (f"<ul>{atoms}</ul>" if atoms else "") + (
        f'<p class="detections">{escape(detections)}</p>' if detections else ""
    )
