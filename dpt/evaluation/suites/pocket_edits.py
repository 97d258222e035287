"""Rule-generated edit instructions on rendered scenes. The oracle judges results against the goal layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dpt.claims.detections import Detection, Detections
from dpt.claims.edits import layout_verdict
from dpt.claims.instructions import Instruction, UnsupportedInstruction, parse_instruction
from dpt.claims.layout import Layout, layout_of, to_pixels
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, Scene, SceneObject, make_scene
from dpt.detect.base import Image
from dpt.detect.oracle.oracle import Oracle
from dpt.keyed_random import KeyedRandom

SUITE_ID = "pocket-edits-1"

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
        rng = KeyedRandom(SUITE_ID, seed, kind, index)
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
