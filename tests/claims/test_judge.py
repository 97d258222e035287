"""The judge with the oracle's detections: cases by hand."""

from __future__ import annotations

import pytest

from dpt.claims.facts import Absent, Box, Count, Noun, Prompt, Related
from dpt.claims.judge import Detection, Detections, Unreadable, judge

RED, BLUE = Noun("red", "circle"), Noun("blue", "square")


def at(colour: str, shape: str, x: float, y: float = 30.0) -> Detection:
    return Detection(shape, Box(x - 10, y - 10, x + 10, y + 10), 1.0, colour, "large")


def verdict(prompt: Prompt, *objects: Detection, unreadable: int = 0) -> tuple[bool, str]:
    spots = tuple(Unreadable(Box(0, 0, 5, 5), "?") for _ in range(unreadable))
    result = judge(prompt, Detections(objects, spots))
    return result.passed, result.first_fault.sort if result.first_fault else ""


single = Prompt("s", "single", "a red circle", (Count(RED, 1),))
pair = Prompt("p", "binding", "", (Count(RED, 1), Count(BLUE, 1)))
left = Prompt("l", "spatial", "", (Count(RED, 1), Count(BLUE, 1), Related(RED, "left", BLUE)))
three = Prompt("c", "count", "", (Count(RED, 3),))
without = Prompt("n", "negation", "", (Count(RED, 1), Absent(Noun(shape="square"))), closed=False)


@pytest.mark.parametrize(
    ("prompt", "objects", "unreadable", "expected"),
    [
        (single, [at("red", "circle", 20)], 0, (True, "")),
        (single, [], 0, (False, "total")),
        (single, [at("red", "circle", 20)], 1, (False, "readable")),
        (single, [at("red", "square", 20)], 0, (False, "count")),
        (single, [at("red", "circle", 20), at("red", "circle", 50)], 0, (False, "total")),
        (pair, [at("red", "circle", 20), at("blue", "square", 50)], 0, (True, "")),
        (pair, [at("blue", "circle", 20), at("red", "square", 50)], 0, (False, "count")),
        (pair, [at("red", "circle", 20)], 0, (False, "total")),
        (pair, [at("red", "circle", 10), at("blue", "square", 30), at("green", "cross", 50)], 0, (False, "total")),
        (left, [at("red", "circle", 20), at("blue", "square", 50)], 0, (True, "")),
        (left, [at("red", "circle", 50), at("blue", "square", 20)], 0, (False, "relation")),
        (left, [at("red", "circle", 30, 10), at("blue", "square", 35.9, 50)], 0, (False, "relation")),
        (left, [at("red", "circle", 30, 10), at("blue", "square", 36, 50)], 0, (True, "")),
        (left, [at("red", "circle", 30, 10), at("blue", "square", 30, 50)], 0, (False, "relation")),
        (three, [at("red", "circle", x) for x in (10, 30, 50)], 0, (True, "")),
        (three, [at("red", "circle", x) for x in (10, 30)], 0, (False, "total")),
        (three, [at("red", "circle", x) for x in (10, 20, 30, 50)], 0, (False, "total")),
        (without, [at("red", "circle", 20)], 0, (True, "")),
        (without, [at("red", "circle", 20), at("green", "cross", 50)], 0, (True, "")),
        (without, [at("red", "circle", 20), at("green", "square", 50)], 0, (False, "absence")),
        (without, [at("green", "cross", 20)], 0, (False, "count")),
    ],
)
def test_the_first_unmet_requirement_is_the_fault(
    prompt: Prompt, objects: list[Detection], unreadable: int, expected: tuple[bool, str]
) -> None:
    assert verdict(prompt, *objects, unreadable=unreadable) == expected


def test_a_detection_without_colour_meets_no_coloured_claim() -> None:
    assert verdict(single, Detection("circle", Box(0, 0, 20, 20), 1.0)) == (False, "count")
