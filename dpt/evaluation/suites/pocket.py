"""The pocket suite: prompts sampled from the scene grammar, by category; and rule-generated edits of scenes.

The image must hold exactly the objects of the prompt and, except for negation, no others. A relation needs 6 pixels
between the centres. An unreadable object fails the image. Of an edit the oracle judges the result against the goal
layout.

The oracle takes no queries; its boxes may reach past the image's edge. An open-vocabulary detector is queried with
"image of a circle", whatever the colour: colours are then named box by box. Scores count from 0.20, NMS is at an IoU of
0.15, and shapes that are not in the prompt are not detected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dpt.claims.facts import RELATIONS, Noun, Prompt
from dpt.claims.instructions import Instruction, UnsupportedInstruction, parse_instruction
from dpt.claims.judge import DetectConfig, Detection, Detections
from dpt.claims.layout import Layout, layout_of, layout_verdict, to_pixels
from dpt.claims.words import Description, Group, caption_text
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, Scene, SceneObject, World, make_scene
from dpt.detect.base import Image
from dpt.detect.oracle.oracle import Oracle
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


EDITS_ID = "pocket-edits-1"

Write = Callable[[KeyedRandom, Scene], str]


def _any(rng: KeyedRandom, scene: Scene) -> str:
    thing = rng.choice(scene.objects)
    return f"the {thing.colour} {thing.shape}"


def _new(rng: KeyedRandom, scene: Scene) -> str:
    colour, shape = rng.choice([kind for kind in POCKET_WORLD.kinds if kind not in {t.kind for t in scene.objects}])
    return f"a {colour} {shape}"


def _move(rng: KeyedRandom, scene: Scene) -> str:
    return f"move {_any(rng, scene)} {rng.choice(('left', 'right', 'up', 'down'))}"


def _swap(rng: KeyedRandom, scene: Scene) -> str:
    first, second = rng.sample(scene.objects, 2)
    return f"swap the {first.colour} {first.shape} and the {second.colour} {second.shape}"


def _recolour(rng: KeyedRandom, scene: Scene) -> str:
    thing = rng.choice(scene.objects)
    colour = rng.choice([colour for colour in POCKET_WORLD.colours if colour != thing.colour])
    return f"turn the {thing.colour} {thing.shape} {colour}"


KINDS: dict[str, Write] = {
    "remove": lambda rng, scene: f"remove {_any(rng, scene)}",
    "add": lambda rng, scene: f"add {_new(rng, scene)}",
    "move": _move,
    "swap": _swap,
    "replace": lambda rng, scene: f"replace {_any(rng, scene)} with {_new(rng, scene)}",
    "resize": lambda rng, scene: f"make {_any(rng, scene)} {rng.choice(('bigger', 'smaller'))}",
    "recolour": _recolour,
}


@dataclass(frozen=True)
class EditCase:
    kind: str
    number: int
    image: Image
    instruction: Instruction
    goal: Layout
    """Computed from the scene's own objects, without a detector."""

    def passed(self, seen: Layout) -> bool:
        return layout_verdict(self.goal, seen).passed


def edit_cases(kind: str, count: int, seed: int = 0) -> Iterator[EditCase]:
    """Scenes of two or three different objects, whose goal the oracle can read when it is rendered."""
    index = number = 0
    while number < count:
        rng = KeyedRandom(EDITS_ID, seed, kind, index)
        scene = make_scene(seed, index, POCKET_WORLD)
        index += 1
        kinds = {thing.kind for thing in scene.objects}
        if not 2 <= len(scene.objects) == len(kinds) <= 3:
            continue
        side = scene.image_size
        objects = tuple(Detection(t.shape, t.box, 1.0, t.colour, t.size) for t in scene.objects)
        try:
            instruction = parse_instruction(KINDS[kind](rng, scene))
            current = layout_of(Detections(objects), side, side)
            goal = instruction.apply(current)
        except UnsupportedInstruction:
            continue
        if _can_be_shown(goal, side) and not layout_verdict(goal, current).passed:
            yield EditCase(kind, number, np.asarray(render(scene)), instruction, goal)
            number += 1


def _can_be_shown(goal: Layout, side: int) -> bool:
    """Whether the oracle reads the goal from its own rendering: objects apart, none too small for it."""
    things = tuple(
        SceneObject(t.noun.shape or "", t.noun.colour or "", "large", to_pixels(t.box, side, side)) for t in goal
    )
    detections = Oracle(POCKET_WORLD).read(render(Scene(things, "white", side)))
    return not detections.unreadable and layout_verdict(goal, layout_of(detections, side, side)).passed
