"""The rules of the public suites, by hand: ties, surplus, no detections, one box for two nouns, margins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpt.claims.facts import Box, Prompt
from dpt.claims.judge import DetectConfig, Detection, Detections, judge
from dpt.evaluation.suites import geneval, lmd, sr2d
from dpt.evaluation.suites.base import Suite


def box(label: str, x: float, y: float = 50, score: float = 0.9, colour: str | None = None) -> Detection:
    return Detection(label, Box(x - 10, y - 10, x + 10, y + 10), score, colour)


def verdict(suite: Suite, text: str, *objects: Detection) -> tuple[bool, str]:
    prompt = next(prompt for prompt in suite.prompts if prompt.text == text)
    result = judge(prompt, Detections(objects), suite.detect_config)
    return result.passed, result.first_fault.sort if result.first_fault else ""


def lmd_prompt(category: str) -> Prompt:
    return next(prompt for prompt in lmd.suite().prompts if prompt.category == category)


START = lmd.LMD_OPENING


@pytest.mark.parametrize(
    ("text", "objects", "expected"),
    [
        ("without cars", [], (True, "")),
        ("without cars", [box("car", 30, score=0.19)], (True, "")),
        ("without cars", [box("car", 30, score=0.20)], (False, "absence")),
        ("without cars", [box("cat", 30)], (True, "")),
        ("with three cups", [box("cup", x) for x in (10, 40, 70)], (True, "")),
        ("with three cups", [box("cup", x) for x in (10, 40)], (False, "count")),
        ("with three cups", [box("cup", x) for x in (10, 40, 70, 90)], (False, "count")),
        ("with three cups", [*(box("cup", x) for x in (10, 40, 70)), box("cup", 90, score=0.19)], (True, "")),
        ("with three cups", [], (False, "count")),
        ("with one cup", [box("cup", 20)], (True, "")),
    ],
)
def test_lmd_negation_and_numeracy(text: str, objects: list[Detection], expected: tuple[bool, str]) -> None:
    assert verdict(lmd.suite(), f"{START} {text}", *objects) == expected


def test_lmd_attribution_needs_a_box_of_each_coloured_noun() -> None:
    prompt = lmd_prompt("attribution")
    first, second = lmd.DETECT.phrases(prompt)
    sure = [box(first, 20), box(second, 60)]
    for objects, expected in [
        (sure, True),
        ([*sure, box(first, 90)], True),  # surplus does no harm
        ([box(first, 50), box(second, 50)], True),  # a box for each noun, on the same spot
        ([box(first, 50)], False),  # but one box is not two
        ([box(first, 20), box(second, 60, score=0.44)], False),
        ([box(first, 20), box(second, 60, score=0.45)], True),
        ([box(first.split()[1], 20), box(second, 60)], False),  # a label without the colour is not a query
        ([], False),
    ]:
        assert judge(prompt, Detections(tuple(objects)), lmd.DETECT).passed is expected


def test_lmd_spatial_compares_the_centres_of_the_best_boxes() -> None:
    prompt = lmd_prompt("spatial")
    here, there = lmd.DETECT.phrases(prompt)
    assert prompt.text.split(" and ")[0].endswith("left")
    for objects, expected in [
        ([box(here, 20), box(there, 60)], True),
        ([box(here, 60), box(there, 20)], False),
        ([box(here, 40), box(there, 40, 80)], False),  # a tie of centres is no relation
        ([box(here, 40), box(there, 40.01, 80)], True),  # no margin
        ([box(here, 20, score=0.5), box(here, 80, score=0.6), box(there, 60)], False),  # the best box counts
        ([box(here, 20, score=0.6), box(here, 80, score=0.6), box(there, 60)], True),  # of equals, the first
        ([box(here, 80, score=0.6), box(here, 20, score=0.6), box(there, 60)], False),
        ([box(here, 20)], False),
        ([], False),
    ]:
        assert judge(prompt, Detections(tuple(objects)), lmd.DETECT).passed is expected
    assert [atom.met for atom in judge(prompt, Detections((box(here, 9),)), lmd.DETECT).atoms] == [True, False, False]


@pytest.mark.parametrize(
    ("text", "objects", "expected"),
    [
        ("a car to the left of a dog", [box("car", 20), box("dog", 60)], (True, "")),
        ("a car to the left of a dog", [box("car", 60), box("dog", 20)], (False, "relation")),
        ("a car to the left of a dog", [box("car", 60), box("car", 10, score=0.2), box("dog", 20)], (True, "")),
        ("a car to the left of a dog", [box("car", 20), box("dog", 60, score=0.1)], (False, "count")),
        ("a car to the left of a dog", [box("car", 20), box("dog", 60, score=0.11)], (True, "")),
        ("a car to the left of a dog", [box("car", 40), box("dog", 40)], (False, "relation")),
        ("a car above a dog", [box("car", 40, 20), box("dog", 40, 60)], (True, "")),
        ("a car below a dog", [box("car", 40, 20), box("dog", 40, 60)], (False, "relation")),
        ("a car and a dog", [box("car", 40), box("dog", 40)], (True, "")),
        ("a car and a dog", [box("carrot", 40), box("dog", 40)], (False, "count")),
        ("a car", [], (False, "count")),
    ],
)
def test_sr2d(text: str, objects: list[Detection], expected: tuple[bool, str]) -> None:
    assert verdict(sr2d.suite(), text, *objects) == expected


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    two = {"class": "car", "count": 2}
    lines = [
        {"tag": "counting", "prompt": "two cars", "include": [two], "exclude": [{"class": "car", "count": 3}]},
        {"tag": "colors", "prompt": "a red car", "include": [{"class": "car", "count": 1, "color": "red"}]},
        {"tag": "colors", "prompt": "two red cars", "include": [{**two, "color": "red"}]},
        {"tag": "position", "prompt": "a car left of a dog", "include": [
            {"class": "dog", "count": 1}, {"class": "car", "count": 1, "position": ["left of", 0]}]},
    ]  # fmt: skip
    file = tmp_path_factory.mktemp("suite") / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return geneval.suite(Path(file))


@pytest.mark.parametrize(
    ("text", "objects", "expected"),
    [
        ("two cars", [box("car", 20), box("car", 60)], (True, "")),
        ("two cars", [box("car", 20)], (False, "count")),
        ("two cars", [box("car", x) for x in (20, 50, 80)], (False, "surplus")),
        ("a red car", [box("car", 20, colour="red")], (True, "")),
        ("a red car", [box("car", 20)], (False, "colour")),
        ("a red car", [box("car", 20, colour="red", score=0.5), box("car", 60, colour="blue")], (False, "colour")),
        ("a red car", [box("car", 20, colour="red"), box("car", 60, colour="blue", score=0.5)], (True, "")),
        ("two red cars", [box("car", 20, colour="red"), box("car", 60, colour="blue")], (False, "colour")),
        ("two red cars", [box("car", 20, colour="red")], (False, "count")),
        ("a car left of a dog", [box("car", 20), box("dog", 60)], (True, "")),
        ("a car left of a dog", [box("car", 60), box("dog", 20)], (False, "relation")),
        # Boxes 20 wide: an offset counts beyond 4, and must then be more than half of the distance.
        ("a car left of a dog", [box("car", 40), box("dog", 48)], (False, "relation")),
        ("a car left of a dog", [box("car", 40), box("dog", 48.1)], (True, "")),
        ("a car left of a dog", [box("car", 40), box("dog", 40)], (False, "relation")),
        ("a car left of a dog", [box("car", 20, 10), box("dog", 60, 90)], (False, "relation")),
        ("a car left of a dog", [box("car", 20)], (False, "count")),
        # Only the best box of each is looked at.
        ("a car left of a dog", [box("car", 20, score=0.5), box("car", 80), box("dog", 60)], (False, "relation")),
    ],
)
def test_geneval_owl(owl: Suite, text: str, objects: list[Detection], expected: tuple[bool, str]) -> None:
    assert verdict(owl, text, *objects) == expected


def test_config_thresholds_queries_and_identity() -> None:
    assert lmd.DETECT.lowest == 0.2 and lmd.DETECT.counts(0.2) and not lmd.DETECT.counts(0.2, "attribution")
    assert sr2d.DETECT.counts(0.1001, "left") and not sr2d.DETECT.counts(0.1)
    assert lmd.DETECT.identity == "'image of {a} {noun}' score >= 0.2 (attribution: 0.45) NMS 0.15"
    assert lmd.DETECT.sentence("orange car") == "image of an orange car"
    assert sr2d.DETECT.sentence("apple") == "a photo of a apple"  # as published
    assert DetectConfig("{noun}", 0.3).identity == "'{noun}' score >= 0.3 no NMS"
