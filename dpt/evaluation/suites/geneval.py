"""GenEval's prompts (arXiv 2310.11513), from its evaluation_metadata.jsonl, and our judge for them, `geneval-owl`.

GenEval's own judge uses another detector. Images are stored in GenEval's layout, so that it can score them too.

Queries are "image of a car"; scores count from 0.20, NMS is at an IoU of 0.15. `include` needs at least its count of
boxes, `exclude` fewer than its count. The best boxes, as many as the count, must all have the colour. A position needs
an offset of centres beyond a tenth of the boxes' extents, and more than half of it in the given direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpt.claims.facts import Claim, ColourOfBest, Count, FewerThan, Noun, Prompt, RelationOfBest
from dpt.claims.judge import DetectConfig
from dpt.errors import UserError
from dpt.evaluation.suites import base as reading
from dpt.evaluation.suites.base import Layout, Suite

JUDGE = "geneval-owl"

LAYOUT: Layout = "folders"

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")

DETECT = DetectConfig("image of {a} {noun}", 0.20, nms=0.15, colours=COLOURS)

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

RELATIONS = {"left of": "left", "right of": "right", "above": "above", "below": "below"}


CountedNoun = tuple[Noun, int]


def suite(file: Path) -> Suite:
    prompts = [_prompt(number, line.where, line.text) for number, line in enumerate(reading.lines(file))]
    if not prompts:
        raise UserError(f"{file} has no prompts")
    return Suite("geneval", "geneval-1", tuple(prompts), DETECT, JUDGE, LAYOUT, "owlv2")


def _prompt(number: int, where: str, line: str) -> Prompt:
    content = reading.parse_object(where, line)
    reading.check_keys(where, content, ("tag", "prompt", "include", "exclude"))
    tag = reading.text_of(where, content, "tag")
    if tag not in TASKS:
        raise UserError(f"{where}: there is no task {tag!r}; the tasks are {', '.join(TASKS)}")
    facts: list[Claim] = []
    included: list[CountedNoun] = []
    for entry in _list(where, content, "include"):
        facts += _included(where, entry, included)
    for entry in _list(where, content, "exclude"):
        reading.check_keys(where, entry, ("class", "count"))
        noun = Noun(shape=reading.text_of(where, entry, "class"))
        facts.append(FewerThan(noun, reading.count_of(where, entry, "count")))
    if not included:
        raise UserError(f"{where}: 'include' is empty, so every image would pass")
    text = reading.text_of(where, content, "prompt")
    return Prompt(f"{number:05d}", tag, text, tuple(facts), closed=False, where=where, source=line)


def _included(where: str, content: Mapping[str, Any], earlier: list[CountedNoun]) -> list[Claim]:
    reading.check_keys(where, content, ("class", "count", "color", "position"))
    noun = Noun(shape=reading.text_of(where, content, "class"))
    n = reading.count_of(where, content, "count")
    facts: list[Claim] = [Count(noun, n, exact=False)]
    if "color" in content:
        colour = reading.text_of(where, content, "color")
        if colour not in COLOURS:
            raise UserError(f"{where}: there is no colour {colour!r}; the colours are {', '.join(COLOURS)}")
        facts.append(ColourOfBest(Noun(colour, noun.shape), n))
    if "position" in content:
        relation, (second, n_second) = _position(where, content["position"], earlier)
        facts.append(RelationOfBest(noun, n, relation, second, n_second))
    earlier.append((noun, n))
    return facts


def _position(where: str, content: Any, earlier: list[CountedNoun]) -> tuple[str, CountedNoun]:
    match content:
        case [str(relation), int(index)] if relation in RELATIONS and 0 <= index < len(earlier):
            return RELATIONS[relation], earlier[index]
    known = ", ".join(RELATIONS)
    raise UserError(
        f"{where}: 'position' must be a relation ({known}) and the number of an earlier object, not {content!r}"
    )


def _list(where: str, content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = content.get(key, [])
    if not isinstance(value, list):
        raise UserError(f"{where}: {key!r} must be a list, not {value!r}")
    return [reading.as_object(f"{where}, {key!r}", entry) for entry in value]
