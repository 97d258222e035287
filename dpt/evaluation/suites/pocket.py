"""The pocket suite: prompts sampled from the scene grammar, by category.

The image must hold exactly the objects of the prompt and, except for negation, no others. A relation needs 6 pixels
between the centres. An unreadable object fails the image.

The oracle takes no queries; its boxes may reach past the image's edge. An open-vocabulary detector is queried with
"image of a circle", whatever the colour: colours are then named box by box. Scores count from 0.20, NMS is at an IoU of
0.15, and shapes that are not in the prompt are not detected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dpt.claims.boxes import RELATIONS
from dpt.claims.description import Description, Group, caption_text
from dpt.claims.detections import DetectConfig
from dpt.claims.facts import Noun, Prompt
from dpt.data.scenes.world import POCKET_WORLD, World
from dpt.errors import UserError
from dpt.evaluation.suites.base import Suite
from dpt.keyed_random import KeyedRandom

SUITE_ID = "pocket-1"

DETECT = DetectConfig("image of {a} {noun}", 0.20, nms=0.15, colours=POCKET_WORLD.colours)

DEFAULT_CATEGORIES = ("single", "binding", "count", "spatial", "negation")
"""Categories and prompts per category by default."""

DEFAULT_PROMPTS = 300


def suite(categories: Sequence[str] = (), per_category: int | None = None, seed: int = 0) -> Suite:
    prompts: list[Prompt] = []
    for category in categories or DEFAULT_CATEGORIES:
        if category not in CATEGORIES:
            raise UserError(f"there is no category {category!r}; the categories are {', '.join(CATEGORIES)}")
        prompts += pocket_prompts(category, DEFAULT_PROMPTS if per_category is None else per_category, seed)
    return Suite("pocket", SUITE_ID, tuple(prompts), DETECT, detector="oracle")


def pocket_prompts(category: str, n: int, seed: int = 0, world: World = POCKET_WORLD) -> list[Prompt]:
    prompts = []
    for i in range(n):
        description = CATEGORIES[category](KeyedRandom(SUITE_ID, seed, category, i), world)
        prompts.append(
            Prompt(
                id=f"{category}-{seed}-{i:04d}",
                category=category,
                text=caption_text(description),
                facts=description.facts,
                closed=description.absent is None,
                unseen=_unseen(description, world),
            )
        )
    return prompts


def _single(rng: KeyedRandom, world: World) -> Description:
    return Description((Group(_noun(rng, world), 1),))


def _binding(rng: KeyedRandom, world: World) -> Description:
    return Description(_two(rng, world))


def _count(rng: KeyedRandom, world: World) -> Description:
    return Description((Group(_noun(rng, world), 1 + rng.randrange(4)),))


def _spatial(rng: KeyedRandom, world: World) -> Description:
    return Description(_two(rng, world), relation=rng.choice(RELATIONS))


def _negation(rng: KeyedRandom, world: World) -> Description:
    present = _noun(rng, world)
    absent = rng.choice([shape for shape in world.shapes if shape != present.shape])
    return Description((Group(present, 1 + rng.randrange(2)),), absent=Noun(shape=absent))


def _complex(rng: KeyedRandom, world: World) -> Description:
    first, second = _two(rng, world)
    used = {first.noun, second.noun}
    third = _noun(rng, world)
    while third in used:
        third = _noun(rng, world)
    return Description((first, second, Group(third, 1 + rng.randrange(2))), relation=rng.choice(RELATIONS))


CATEGORIES: dict[str, Callable[[KeyedRandom, World], Description]] = {
    "single": _single,
    "binding": _binding,
    "count": _count,
    "spatial": _spatial,
    "negation": _negation,
    "complex": _complex,
}


def _noun(rng: KeyedRandom, world: World) -> Noun:
    """Any colour with any shape, those held out of training included."""
    return Noun(rng.choice(world.colours), rng.choice(world.shapes))


def _two(rng: KeyedRandom, world: World) -> tuple[Group, Group]:
    colours, shapes = rng.sample(world.colours, 2), rng.sample(world.shapes, 2)
    return Group(Noun(colours[0], shapes[0]), 1), Group(Noun(colours[1], shapes[1]), 1)


def _unseen(description: Description, world: World) -> bool:
    nouns = [group.noun for group in description.groups]
    if any((noun.colour, noun.shape) in world.held_out_kinds for noun in nouns):
        return True
    relation = description.relation
    return bool(relation) and (nouns[0].shape, relation, nouns[1].shape) in world.held_out_relations
