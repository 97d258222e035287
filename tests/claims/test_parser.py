"""Captions of the scene grammar parse back to their claims."""

from __future__ import annotations

import pytest

from dpt.claims.facts import Noun
from dpt.claims.words import Description, Group, parse_caption
from dpt.data.scenes.world import POCKET_WORLD
from dpt.evaluation.suites.pocket import CATEGORIES, pocket_prompts


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_prompt_of_the_suite_parses_to_its_claims(category: str) -> None:
    for prompt in pocket_prompts(category, 60):
        description = parse_caption(prompt.text, POCKET_WORLD)
        assert description is not None, prompt.text
        assert description.facts == prompt.facts
        assert (description.absent is None) == prompt.closed


def test_relations_and_plurals_are_parsed() -> None:
    circle, square = Group(Noun("red", "circle"), 1), Group(Noun("blue", "square"), 1)
    assert parse_caption("A red circle  to the left of a blue square.", POCKET_WORLD) == Description(
        (circle, square), "left"
    )
    assert parse_caption("two crosses", POCKET_WORLD) == Description((Group(Noun(None, "cross"), 2),))


@pytest.mark.parametrize(
    "text",
    ["", "a", "a cat on a sofa", "a red circle and", "red circle", "a red circles", "two red circle", "a violet circle",
     "a red circle left of a blue square", "an red circle", "a circle red", "a red circle without a star",
     "some circles"],
)  # fmt: skip
def test_other_text_is_not_parsed(text: str) -> None:
    assert parse_caption(text, POCKET_WORLD) is None
