"""The page: self-contained, worst regressions first, pictures within the budget, nothing of a prompt is markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpt.errors import UserError
from dpt.evaluation.bench import tables as report
from dpt.evaluation.bench.columns import MethodResults
from dpt.evaluation.bench.page.gallery import Album, Section
from dpt.evaluation.bench.page.gallery import sections as sections_of
from dpt.evaluation.bench.page.page import ReportData, page
from dpt.evaluation.bench.results import ImageResult, JudgedAtom, SeenObject
from dpt.evaluation.fidelity import Fidelity
from tests.evaluation.bench.rows import row

VOID = {"meta", "rect", "line", "image"}
PLAIN = "html head title style body article figure figcaption svg text div span p b ul li h1 h2 h3 dl dt dd small"
KNOWN = {*VOID, *PLAIN.split()}


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in KNOWN
        if self.get_starttag_text().endswith("/>") or tag in VOID:  # type: ignore[union-attr]
            return
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


ROWS: dict[str, list[ImageResult]] = {
    "base": [row("base", "a"), row("base", "b", passed=False), row("base", "c"), row("base", "c", 1),
             row("base", "d", passed=False), row("base", "e")],
    "tuned": [row("tuned", "a", passed=False), row("tuned", "b"), row("tuned", "c", passed=False),
              row("tuned", "c", 1), row("tuned", "d", passed=False), row("tuned", "e")],
}  # fmt: skip


def written(folder: Path, rows: dict[str, list[ImageResult]], side: int = 32) -> Path:
    for name, own in rows.items():
        (folder / name).mkdir()
        for number, one in enumerate(own):
            pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{one.prompt_id}-{one.index}.png")
    return folder


def columns(rows: dict[str, list[ImageResult]]) -> dict[str, MethodResults]:
    return {name: MethodResults.of(own) for name, own in rows.items()}


def sections(rows: dict[str, list[ImageResult]], baseline: str) -> list[Section]:
    return sections_of(columns(rows), baseline)


def made(folder: Path, rows: dict[str, list[ImageResult]], budget: int = 10**6) -> str:
    methods = columns(rows)
    results = report.results(methods)
    apart = [report.difference(methods["tuned"], methods["base"])] if "tuned" in rows else []
    record = {"asked": {"suite": "pocket"}, "methods": {name: {"detector": "the <oracle>"} for name in rows}}
    return page(ReportData(record, "base", results, apart, methods), Album(folder, "flat", budget))


def test_regressions_come_first_and_the_worst_prompt_before_all() -> None:
    found = sections(ROWS, "base")
    assert [section.title.split(" ")[0] for section in found] == ["Worse", "Better", "Wrong", "Right"]
    assert [case.first.prompt_id for case in found[0].cases] == ["a", "c"]
    assert sum(len(section.cases) for section in found) == 6


def test_a_case_is_alike_only_if_it_is_so_for_all() -> None:
    third = [row("third", one.prompt_id, one.index, passed=one.prompt_id in "bd") for one in ROWS["base"]]
    found = {section.title.split(",")[0]: section for section in sections({**ROWS, "third": third}, "base")}
    assert {title: len(section.cases) for title, section in found.items()} == {
        "Worse than base": 4, "Better than base": 2,
    }  # fmt: skip


def test_what_was_not_judged_is_ranked_by_clip() -> None:
    rows = {
        name: [row(name, key, passed=None, clip=value) for key, value in zip("abc", values, strict=True)]
        for name, values in {"base": (0.3, 0.3, 0.3), "tuned": (0.2, 0.4, 0.1)}.items()
    }
    found = sections(rows, "base")
    assert [[case.first.prompt_id for case in section.cases] for section in found] == [["c", "a"], ["b"]]
    assert sections({"base": rows["base"]}, "base")[0].title == "Not judged"


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    text = made(written(tmp_path, ROWS), ROWS)
    Balanced(text)
    assert not re.search(r'(?:src|href)="(?!data:image/)', text) and "http" not in text and "<script" not in text
    assert "@import" not in text and "url(" not in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("data:image/png;base64,") == 12
    assert text.count('class="box"') == 12 and "red car 0.75" in text


def test_no_column_is_wider_than_a_phone() -> None:
    from dpt.evaluation.bench.page.charts import STYLE

    assert not re.search(r"(?<![-\w])(min-)?width: *[\d.]+(px|rem)", STYLE)
    columns = re.findall(r"repeat\([^,]+, minmax\(([^)]+\))", STYLE)
    assert len(columns) == 4 and all(re.fullmatch(r"min\((100%, \S+|\S+, 100%)\)", column) for column in columns)
    assert "overflow-wrap: anywhere" in STYLE


def test_a_prompt_is_no_markup(tmp_path: Path) -> None:
    rows = {"base": [row("base", "a", prompt='<script>alert("x")</script> & "more"')]}
    text = made(written(tmp_path, rows), rows)
    Balanced(text)
    assert "&lt;script&gt;" in text and "<script" not in text and "the &lt;oracle&gt;" in text


MARKUP = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'&"


def test_nothing_else_is_markup_either(tmp_path: Path) -> None:
    """Not the names of methods, labels, colours, requirements, categories, suites, judges, schedulers, file names."""
    seen = SeenObject(MARKUP, MARKUP, MARKUP, (1.0, 2.0, 3.0, 4.0), 0.5)
    atom = JudgedAtom(MARKUP, MARKUP, False)
    told = {"prompt": MARKUP, "category": MARKUP, "objects": (seen,), "atoms": (atom,), "clip": 0.5}
    base, tuned = (row(name, "a", **told) for name in ("base", "tuned"))
    rows = {"base": [replace(base, method=MARKUP)], "tuned": [replace(tuned, method=MARKUP, passed=False)]}
    both = columns(rows)
    results = [replace(one, measures={MARKUP: one.rates["all"]}) for one in report.results(both)]
    results = [replace(one, method=MARKUP, clipped=1) for one in results]
    apart = [replace(report.difference(both["tuned"], both["base"]), method=MARKUP, baseline=MARKUP)]
    asked = {name: MARKUP for name in ("suite", "num_timesteps", "scheduler", "guidance_scale", "per_prompt")}
    methods = {MARKUP: {name: MARKUP for name in ("judge", "detector", "clip", "suite_hash")}}
    distances = Fidelity(MARKUP, MARKUP, 5, 3, {MARKUP: 0.5}, None)
    counted = ReportData({"asked": asked, "methods": methods}, "base", results, apart, both, distances)
    text = page(counted, Album(written(tmp_path, rows), "flat", 10**6))
    Balanced(text)
    assert "<script" not in text and "<img" not in text and text.count("&lt;script&gt;") > 20
    assert MARKUP[:2] not in re.sub(r'<[^<>"]*(?:"[^"]*"[^<>"]*)*>', "", text), "no attribute is ended from within"


def test_pictures_stay_within_the_budget_and_the_rest_is_told(tmp_path: Path) -> None:
    folder = written(tmp_path, ROWS)
    whole = made(folder, ROWS)
    budget = 30_000
    text = made(folder, ROWS, budget)
    embedded = sum(map(len, re.findall(r'href="(data:[^"]+)"', text)))
    assert 0 < embedded <= budget < sum(map(len, re.findall(r'href="(data:[^"]+)"', whole)))
    shown, left = re.search(r"(\d+) cases are shown and (\d+) left out", text).groups()  # type: ignore[union-attr]
    assert int(shown) + int(left) == 6 and int(shown) == text.count("<article>") > 0
    assert "6 cases are shown and 0 left out" in whole


def test_large_pictures_are_reduced_and_their_boxes_stay_in_their_pixels(tmp_path: Path) -> None:
    rows = {"base": [row("base", "a")]}
    text = made(written(tmp_path, rows, side=600), rows)
    assert "data:image/jpeg" in text and 'viewBox="0 0 600 600"' in text and "are shown reduced" in text


def test_a_half_written_picture_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path, ROWS)
    file = folder / "tuned/a-0.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"tuned/a-0.png is damaged or only half written"):
        made(folder, ROWS)


def test_bars_and_whiskers_are_the_numbers() -> None:
    from dpt.evaluation.bench.page.charts import difference_charts, rate_charts

    found = report.results(columns(ROWS))
    text = rate_charts(found)
    Balanced(text)
    value = found[0].rates["left"]
    assert f'width="{round(100 * value.value, 2)}"' in text and value.percent in text
    apart = report.difference(columns(ROWS)["tuned"], columns(ROWS)["base"])
    text = difference_charts([apart], ["base", "tuned"])
    Balanced(text)
    assert apart.points["left"].signed in text and "tuned - base" in text


def test_a_page_of_what_was_not_judged(tmp_path: Path) -> None:
    rows = {"base": [row("base", "a", passed=None, clip=0.2), row("base", "b", passed=None, clip=0.4)]}
    text = made(written(tmp_path, rows), rows)
    Balanced(text)
    assert "Nothing was judged" in text and "CLIP cosine" in text and "0.300" in text
