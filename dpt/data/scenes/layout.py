"""Where the objects of a scene go: `scene(seed, index)` is a pure function."""

from __future__ import annotations

from dataclasses import replace

from dpt.claims.boxes import Box
from dpt.data.scenes.world import FULL_WORLD, SIZES, Kind, Scene, SceneObject, World
from dpt.keyed_random import KeyedRandom

EDGE = 1.5

GAP = 2.5

TRIES_PER_OBJECT = 30


def scene(seed: int, index: int, world: World = FULL_WORLD) -> Scene:
    draws = KeyedRandom("scene", seed, index)
    sort = draws.pick_weighted(world.sorts)
    return arrange(draw_kinds(draws, sort, world), draws, world)


def draw_kinds(draws: KeyedRandom, sort: str, world: World) -> list[Kind]:
    kinds = world.kinds
    if sort == "single" or world.max_objects == 1:
        return [draws.pick(kinds)]
    if sort == "pair" or world.max_objects == 2:
        return draws.some(kinds, 2)
    if sort == "group":
        return [draws.pick(kinds)] * (2 + draws.below(world.max_objects - 1))
    return [draws.pick(kinds) for _ in range(3 + draws.below(world.max_objects - 2))]


def arrange(kinds: list[Kind], draws: KeyedRandom, world: World) -> Scene:
    """Place objects of the given kinds at random without overlap, starting over when one does not fit."""
    background = draws.pick(world.backgrounds)
    while True:
        objects: list[SceneObject] = []
        for colour, shape in kinds:
            placed = _place(shape, colour, objects, draws, world)
            if placed is None:
                break
            objects.append(placed)
        else:
            return Scene(tuple(objects), background, world.image_size)


def move(scene_: Scene, which: int, box: Box) -> Scene:
    objects = list(scene_.objects)
    objects[which] = replace(objects[which], box=box)
    return replace(scene_, objects=tuple(objects))


def fits(box: Box, others: list[SceneObject] | tuple[SceneObject, ...], image_size: int) -> bool:
    inside = min(box.x0, box.y0) >= EDGE and max(box.x1, box.y1) <= image_size - EDGE
    return inside and all(box.gap_to(other.box) >= GAP for other in others)


def _place(shape: str, colour: str, others: list[SceneObject], draws: KeyedRandom, world: World) -> SceneObject | None:
    size = draws.pick(world.sizes)
    for _ in range(TRIES_PER_OBJECT):
        extent = draws.between(*SIZES[size])
        x0 = draws.between(EDGE, world.image_size - EDGE - extent)
        y0 = draws.between(EDGE, world.image_size - EDGE - extent)
        box = Box(x0, y0, x0 + extent, y0 + extent)
        if fits(box, others, world.image_size):
            return SceneObject(shape, colour, size, box)
    return None
