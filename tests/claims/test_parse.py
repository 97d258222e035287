"""The rule-based prompt parser: every prompt of the suites, and nothing that it does not understand."""

from __future__ import annotations

import pytest

from dpt.claims.facts import Noun
from dpt.claims.parse import ObjectRelation, UnsupportedPrompt, is_supported, parse_prompt
from dpt.evaluation.suites import lmd, pocket, sr2d


def test_every_prompt_of_the_suites_parses_to_its_claims() -> None:
    prompts = (*lmd.suite().prompts, *pocket.suite((*pocket.DEFAULT_CATEGORIES, "complex"), 60).prompts)
    for prompt in (*prompts, *sr2d.suite().prompts[::23]):
        parsed = parse_prompt(prompt.text)
        assert (parsed.facts, parsed.closed) == (prompt.facts, prompt.closed), prompt.text


def test_objects_are_listed_by_instance_and_relations_by_position() -> None:
    parsed = parse_prompt("two red circles to the left of a blue square and a green cross")
    red = Noun("red", "circle")
    assert parsed.objects == (red, red, Noun("blue", "square"), Noun("green", "cross"))
    assert parsed.relations == (ObjectRelation(0, "left", 2),)


def test_wordings_of_captions_are_understood() -> None:
    plain = parse_prompt("a purple circle to the left of a blue square")
    worded = parse_prompt("A picture of one violet disc  left of a blue box on a plain background.")
    assert (worded.objects, worded.facts) == (plain.objects, plain.facts)
    assert parse_prompt("two stars without any red hoops").absent == (Noun("red", "ring"),)


def test_the_longest_known_noun_is_the_head() -> None:
    assert parse_prompt("a hot dog and a red dog").objects == (Noun(None, "hot dog"), Noun("red", "dog"))
    assert parse_prompt("an orange above an orange cat").objects == (Noun(None, "orange"), Noun("orange", "cat"))


@pytest.mark.parametrize(
    "prompt",
    ["", "red", "a", "a cat on a sofa", "a beautiful sunset", "two cat", "a cats", "a cat and", "a cat, a dog",
     "zero cats", "99 cats", "some circles", "a red car and a circle", "a red blue car", "red a car", "a cat without",
     "a realistic photo of a scene", "a realistic photo of a scene with unicorns",
     "a realistic photo of a scene with a cat on the left and a dog on the top",
     "a realistic photo of a scene without a dog", "a large small car", "draw me a car", "a dog\u2028and a cat or"],
)  # fmt: skip
def test_anything_else_is_unsupported(prompt: str) -> None:
    assert not is_supported(prompt)
    with pytest.raises(UnsupportedPrompt, match="does not understand"):
        parse_prompt(prompt)
