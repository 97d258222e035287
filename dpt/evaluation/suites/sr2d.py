"""SR2D (arXiv 2212.10015), rebuilt by rule: every pair of 80 nouns in four relations, joined by "and", and each alone.

Queries are "a photo of a car"; scores count above 0.1, without NMS. An object is present if it has a box, and one box
may count for both nouns. A relation holds if some box of the first noun has its centre strictly beyond that of some
box of the second.
"""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import combinations
from typing import Any

from dpt.claims.facts import Claim, Count, Noun, Prompt, RelationByCentres
from dpt.claims.judge import DetectConfig
from dpt.claims.words import COCO_NOUNS as NOUNS
from dpt.claims.words import with_article
from dpt.evaluation.suites.base import Suite

RELATIONS = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}

SHA256 = "ebe9b1199fd3c00aeb32f04b17d947319f40eb6edb87e97621277e5b61379048"
"""Hash of the published file, which `published` reproduces byte for byte."""


DETECT = DetectConfig("a photo of a {noun}", 0.1, above=True)


Row = dict[str, Any]


@lru_cache(maxsize=1)
def suite() -> Suite:
    return Suite("sr2d", "sr2d-1", tuple(prompt_of_row(row) for row in rows()), DETECT, detector="owlvit")


def rows() -> list[Row]:
    entries: list[tuple[str, str | None, str]] = []
    for first, second in combinations(NOUNS, 2):
        for relation in (*RELATIONS, "and"):
            entries += [(first, second, relation), (second, first, relation)]
    entries += [(noun, None, "single") for noun in NOUNS]
    return [_row(number, *entry) for number, entry in enumerate(entries)]


def published() -> str:
    return json.dumps(rows(), indent=2)


def _row(number: int, first: str, second: str | None, relation: str) -> Row:
    text = with_article(first) if second is None else f"{with_article(first)} {relation} {with_article(second)}"
    return {
        "unique_id": number,
        "num_objects": 1 if second is None else 2,
        "obj_1_attributes": [first],
        "obj_2_attributes": [second],
        "rel_type": relation,
        "text": text,
    }


def prompt_of_row(row: Row) -> Prompt:
    nouns = [Noun(shape=name) for name in (*row["obj_1_attributes"], *row["obj_2_attributes"]) if name]
    facts: list[Claim] = [Count(noun, 1, exact=False) for noun in nouns]
    relation = RELATIONS.get(row["rel_type"])
    if relation:
        facts.append(RelationByCentres(nouns[0], relation, nouns[1], best_only=False))
    category = relation or row["rel_type"]
    return Prompt(f"sr2d-{row['unique_id']:05d}", category, row["text"], tuple(facts), closed=False)


def row_of_prompt(prompt: Prompt) -> Row:
    """The published row of a prompt that `prompt_of_row` made."""
    names = [noun.shape or "" for noun in prompt.nouns]
    relation = next((words for words, name in RELATIONS.items() if name == prompt.category), prompt.category)
    number = int(prompt.id.rpartition("-")[2])
    return _row(number, names[0], names[1] if len(names) > 1 else None, relation)
