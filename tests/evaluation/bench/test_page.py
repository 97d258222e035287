"""The report page: self-contained, worst regressions first, images within the budget, all text escaped."""

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
from dpt.evaluation.bench.gallery import Album, Section
from dpt.evaluation.bench.gallery import sections as sections_of
from dpt.evaluation.bench.page import ReportData, page
from dpt.evaluation.bench.results import DetectedObject, ImageResult, JudgedAtom
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


def save_pictures(folder: Path, rows: dict[str, list[ImageResult]], side: int = 32) -> Path:
    for name, results in rows.items():
        (folder / name).mkdir()
        for number, result in enumerate(results):
            pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{result.prompt_id}-{result.index}.png")
    return folder


def columns(rows: dict[str, list[ImageResult]]) -> dict[str, MethodResults]:
    return {name: MethodResults.of(results) for name, results in rows.items()}


def sections(rows: dict[str, list[ImageResult]], baseline: str) -> list[Section]:
    return sections_of(columns(rows), baseline)


def render_page(folder: Path, rows: dict[str, list[ImageResult]], budget: int = 10**6) -> str:
    methods = columns(rows)
    results = report.compute_results(methods)
    differences = [report.paired_difference(methods["tuned"], methods["base"])] if "tuned" in rows else []
    record = {"asked": {"suite": "pocket"}, "methods": {name: {"detector": "the <oracle>"} for name in rows}}
    return page(ReportData(record, "base", results, differences, methods), Album(folder, "flat", budget))


def test_regressions_come_first_worst_prompt_first() -> None:
    ordered = sections(ROWS, "base")
    assert [section.title.split(" ")[0] for section in ordered] == ["Worse", "Better", "Wrong", "Right"]
    assert [case.first.prompt_id for case in ordered[0].cases] == ["a", "c"]
    assert sum(len(section.cases) for section in ordered) == 6


def test_cases_are_alike_only_if_all_methods_agree() -> None:
    third = [row("third", base.prompt_id, base.index, passed=base.prompt_id in "bd") for base in ROWS["base"]]
    by_title = {section.title.split(",")[0]: section for section in sections({**ROWS, "third": third}, "base")}
    assert {title: len(section.cases) for title, section in by_title.items()} == {
        "Worse than base": 4, "Better than base": 2,
    }  # fmt: skip


def test_unjudged_pictures_are_ranked_by_clip() -> None:
    rows = {
        name: [row(name, key, passed=None, clip=value) for key, value in zip("abc", values, strict=True)]
        for name, values in {"base": (0.3, 0.3, 0.3), "tuned": (0.2, 0.4, 0.1)}.items()
    }
    ordered = sections(rows, "base")
    assert [[case.first.prompt_id for case in section.cases] for section in ordered] == [["c", "a"], ["b"]]
    assert sections({"base": rows["base"]}, "base")[0].title == "Not judged"


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    text = render_page(save_pictures(tmp_path, ROWS), ROWS)
    Balanced(text)
    assert not re.search(r'(?:src|href)="(?!data:image/)', text) and "http" not in text and "<script" not in text
    assert "@import" not in text and "url(" not in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("data:image/png;base64,") == 12
    assert text.count('class="box"') == 12 and "red car 0.75" in text


def test_columns_fit_a_phone_screen() -> None:
    from dpt.evaluation.bench.page import STYLE

    assert not re.search(r"(?<![-\w])(min-)?width: *[\d.]+(px|rem)", STYLE)
    columns = re.findall(r"repeat\([^,]+, minmax\(([^)]+\))", STYLE)
    assert len(columns) == 4 and all(re.fullmatch(r"min\((100%, \S+|\S+, 100%)\)", column) for column in columns)
    assert "overflow-wrap: anywhere" in STYLE


def test_prompts_are_escaped(tmp_path: Path) -> None:
    rows = {"base": [row("base", "a", prompt='<script>alert("x")</script> & "more"')]}
    text = render_page(save_pictures(tmp_path, rows), rows)
    Balanced(text)
    assert "&lt;script&gt;" in text and "<script" not in text and "the &lt;oracle&gt;" in text


MARKUP = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'&"


def test_all_other_text_is_escaped(tmp_path: Path) -> None:
    """Names of methods, labels, colours, claims, categories, suites, judges, schedulers and files."""
    detected = DetectedObject(MARKUP, MARKUP, MARKUP, (1.0, 2.0, 3.0, 4.0), 0.5)
    atom = JudgedAtom(MARKUP, MARKUP, False)
    values = {"prompt": MARKUP, "category": MARKUP, "objects": (detected,), "atoms": (atom,), "clip": 0.5}
    base, tuned = (row(name, "a", **values) for name in ("base", "tuned"))
    rows = {"base": [replace(base, method=MARKUP)], "tuned": [replace(tuned, method=MARKUP, passed=False)]}
    both = columns(rows)
    results = [replace(result, measures={MARKUP: result.rates["all"]}) for result in report.compute_results(both)]
    results = [replace(result, method=MARKUP, clipped=1) for result in results]
    differences = [replace(report.paired_difference(both["tuned"], both["base"]), method=MARKUP, baseline=MARKUP)]
    options = {name: MARKUP for name in ("suite", "num_timesteps", "scheduler", "guidance_scale", "per_prompt")}
    methods = {MARKUP: {name: MARKUP for name in ("judge", "detector", "clip", "suite_hash")}}
    distances = Fidelity(MARKUP, MARKUP, 5, 3, {MARKUP: 0.5}, None)
    counted = ReportData({"asked": options, "methods": methods}, "base", results, differences, both, distances)
    text = page(counted, Album(save_pictures(tmp_path, rows), "flat", 10**6))
    Balanced(text)
    assert "<script" not in text and "<img" not in text and text.count("&lt;script&gt;") > 20
    assert MARKUP[:2] not in re.sub(r'<[^<>"]*(?:"[^"]*"[^<>"]*)*>', "", text), "an attribute is not escaped"


def test_pictures_stay_within_the_budget_and_the_rest_is_counted(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path, ROWS)
    whole = render_page(folder, ROWS)
    budget = 30_000
    text = render_page(folder, ROWS, budget)
    embedded = sum(map(len, re.findall(r'href="(data:[^"]+)"', text)))
    assert 0 < embedded <= budget < sum(map(len, re.findall(r'href="(data:[^"]+)"', whole)))
    shown, left = re.search(r"(\d+) cases are shown and (\d+) left out", text).groups()  # type: ignore[union-attr]
    assert int(shown) + int(left) == 6 and int(shown) == text.count("<article>") > 0
    assert "6 cases are shown and 0 left out" in whole


def test_large_pictures_are_reduced_and_boxes_keep_their_coordinates(tmp_path: Path) -> None:
    rows = {"base": [row("base", "a")]}
    text = render_page(save_pictures(tmp_path, rows, side=600), rows)
    assert "data:image/jpeg" in text and 'viewBox="0 0 600 600"' in text and "are shown reduced" in text


def test_a_damaged_picture_is_an_error_with_its_name(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path, ROWS)
    file = folder / "tuned/a-0.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"tuned/a-0.png is damaged or only half written"):
        render_page(folder, ROWS)


def test_charts_show_the_rates_and_differences() -> None:
    from dpt.evaluation.bench.page import difference_charts, rate_charts

    results = report.compute_results(columns(ROWS))
    text = rate_charts(results)
    Balanced(text)
    value = results[0].rates["left"]
    assert f'width="{round(100 * value.value, 2)}"' in text and value.percent in text
    difference = report.paired_difference(columns(ROWS)["tuned"], columns(ROWS)["base"])
    text = difference_charts([difference], ["base", "tuned"])
    Balanced(text)
    assert difference.points["left"].signed in text and "tuned - base" in text


def test_a_page_without_verdicts_shows_clip_scores(tmp_path: Path) -> None:
    rows = {"base": [row("base", "a", passed=None, clip=0.2), row("base", "b", passed=None, clip=0.4)]}
    text = render_page(save_pictures(tmp_path, rows), rows)
    Balanced(text)
    assert "Nothing was judged" in text and "CLIP cosine" in text and "0.300" in text
