"""Prompts to sample and score, in the five categories of the published alignment set."""

from __future__ import annotations

from collections import Counter

from dpt.data.scenes.captions import Description, describe, say
from dpt.data.scenes.draws import Draws
from dpt.data.scenes.layout import scene
from dpt.data.scenes.published import Record, prompt_record
from dpt.data.scenes.world import World

CATEGORIES = ("numerical", "spatial", "semantic", "mixed", "null")
TRIES_PER_PROMPT = 500


def alignment_prompts(seed: int, first_index: int, n: int, world: World) -> list[Record]:
    """About n different prompts, as many of each category; fewer if the world has no more to say."""
    each = max(1, round(n / len(CATEGORIES)))
    found: list[Record] = []
    said: set[str] = set()
    counts: Counter[str] = Counter()
    for index in range(first_index, first_index + n * TRIES_PER_PROMPT):
        if all(counts[category] >= each for category in CATEGORIES):
            break
        one = scene(seed, index, world)
        draws = Draws("prompt", seed, index)
        description = describe(one, world, draws)
        text = say(description, draws)
        category = category_of(description)
        if counts[category] < each and text not in said:
            said.add(text)
            counts[category] += 1
            found.append(prompt_record(len(found), category, text, one))
    return found


def category_of(description: Description) -> str:
    """Number, place, whose colour is whose, more than one of these, or just a thing."""
    numerical = any(group.n > 1 for group in description.groups)
    spatial = description.relation is not None
    binding = len(description.groups) > 1 and not spatial
    if numerical + spatial + binding > 1 or (spatial and len(description.groups) > 2):
        return "mixed"
    if numerical:
        return "numerical"
    if spatial:
        return "spatial"
    return "semantic" if binding or description.absent else "null"
