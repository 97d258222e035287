from __future__ import annotations

import hashlib

import pytest

from dpt.claims.facts import Count, Prompt, Related
from dpt.claims.words import vocabulary
from dpt.data.scenes.world import POCKET_WORLD
from dpt.evaluation.suites.pocket import CATEGORIES, pocket_prompts


@pytest.fixture(scope="module", params=CATEGORIES)
def prompts(request: pytest.FixtureRequest) -> list[Prompt]:
    return pocket_prompts(request.param, 200)


def test_a_prompt_depends_only_on_seed_category_and_index(prompts: list[Prompt]) -> None:
    category = prompts[0].category
    assert pocket_prompts(category, 7) == prompts[:7]
    assert len({prompt.id for prompt in prompts}) == 200
    assert pocket_prompts(category, 200, seed=1) != prompts


def test_prompts_use_only_words_of_the_pocket_vocabulary(prompts: list[Prompt]) -> None:
    assert {word for prompt in prompts for word in prompt.text.split()} <= set(vocabulary())


def test_prompts_can_be_met_by_a_scene(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        counted = [fact for fact in prompt.facts if isinstance(fact, Count)]
        assert sum(fact.n for fact in counted) <= POCKET_WORLD.max_objects
        assert len({fact.noun for fact in counted}) == len(counted)


def test_unseen_prompts_are_those_with_held_out_combinations(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        kinds = {(f.noun.colour, f.noun.shape) for f in prompt.facts if isinstance(f, Count)}
        relations = {(f.first.shape, f.relation, f.second.shape) for f in prompt.facts if isinstance(f, Related)}
        held_out = bool(kinds & set(POCKET_WORLD.held_out_kinds) or relations & set(POCKET_WORLD.held_out_relations))
        assert prompt.unseen == held_out
    assert any(prompt.unseen for prompt in prompts) and not all(prompt.unseen for prompt in prompts)


def test_the_prompts_have_not_changed() -> None:
    """Published numbers refer to these prompts: a change of the grammar needs a new suite id."""
    texts = [prompt.text for category in CATEGORIES for prompt in pocket_prompts(category, 300)]
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] == "417d4a01ded7a487"
