"""Worlds (which scenes exist), scenes (typed values), and their random layout: `make_scene(seed, index, world)`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dpt.claims.facts import Box
from dpt.claims.words import COLOUR_WORDS, COLOURS, RGB, SHAPE_WORDS, SHAPES, SIZE_WORDS, vocabulary
from dpt.keyed_random import KeyedRandom

BACKGROUNDS: dict[str, RGB] = {
    "white": (246, 246, 244),
    "grey": (188, 190, 192),
    "sand": (222, 208, 180),
    "black": (26, 26, 30),
}


SIZES: dict[str, tuple[float, float]] = {"small": (13.5, 15.5), "large": (20.0, 22.5)}
"""Range of an object's width in pixels."""


SMALLEST_IMAGE = 60
"""Pixels; in a smaller image four large objects may never fit."""


Kind = tuple[str, str]
"""(colour, shape)"""


@dataclass(frozen=True)
class World:
    """The objects and backgrounds of a family of scenes, and the probability of each sort of scene."""

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    sizes: tuple[str, ...] = tuple(SIZES)
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    max_objects: int = 4
    sorts: tuple[tuple[str, float], ...] = (("single", 0.2), ("pair", 0.4), ("group", 0.25), ("mixed", 0.15))
    """Weights of: one object; two of different kinds; two to four of one kind; three or more of any kinds."""
    held_out_kinds: tuple[Kind, ...] = ()
    """Colour-shape combinations that no scene contains."""
    held_out_relations: tuple[tuple[str, str, str], ...] = ()
    """(shape, relation, shape) that no caption states."""
    image_size: int = 64

    def __post_init__(self) -> None:
        for chosen, known, what in (
            (self.shapes, SHAPES, "shape"),
            (self.colours, COLOURS, "colour"),
            (self.sizes, SIZES, "size"),
            (self.backgrounds, BACKGROUNDS, "background"),
            (tuple(sort for sort, _ in self.sorts), ("single", "pair", "group", "mixed"), "sort of scene"),
        ):
            unknown = [name for name in chosen if name not in known]
            if unknown or not chosen:
                raise ValueError(f"a world needs at least one {what} out of {', '.join(known)}; got {chosen}")
        if not 1 <= self.max_objects <= 4:
            raise ValueError(f"a scene holds 1 to 4 objects, not {self.max_objects}")
        if self.image_size < SMALLEST_IMAGE:
            raise ValueError(f"a scene is at least {SMALLEST_IMAGE} pixels wide, not {self.image_size}")
        if any(weight < 0 for _, weight in self.sorts) or not any(weight for _, weight in self.sorts):
            raise ValueError(f"the weights of the sorts of scene are positive numbers; got {self.sorts}")
        if len(self.kinds) < 2:
            raise ValueError("a world needs at least two kinds of object that are not held out")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(
            (colour, shape)
            for colour in self.colours
            for shape in self.shapes
            if (colour, shape) not in self.held_out_kinds
        )


@dataclass(frozen=True)
class SceneObject:
    shape: str
    colour: str
    size: str
    box: Box

    @property
    def kind(self) -> Kind:
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    objects: tuple[SceneObject, ...]
    background: str
    image_size: int = 64


FULL_WORLD = World()


POCKET_WORLD = World(
    shapes=("circle", "square", "triangle", "cross"),
    colours=("red", "green", "blue", "yellow", "purple", "cyan"),
    sizes=("large",),
    backgrounds=("white",),
    held_out_kinds=(("yellow", "triangle"), ("purple", "cross")),
    held_out_relations=(
        ("circle", "left", "cross"),
        ("cross", "right", "circle"),
        ("square", "above", "triangle"),
        ("triangle", "below", "square"),
    ),
)


WORLDS: dict[str, World] = {"full": FULL_WORLD, "pocket": POCKET_WORLD}


EDGE = 1.5

GAP = 2.5

TRIES_PER_OBJECT = 30


def make_scene(seed: int, index: int, world: World = FULL_WORLD) -> Scene:
    rng = KeyedRandom("scene", seed, index)
    sort = rng.weighted_choice(world.sorts)
    return arrange(draw_kinds(rng, sort, world), rng, world)


def draw_kinds(rng: KeyedRandom, sort: str, world: World) -> list[Kind]:
    kinds = world.kinds
    if sort == "single" or world.max_objects == 1:
        return [rng.choice(kinds)]
    if sort == "pair" or world.max_objects == 2:
        return rng.sample(kinds, 2)
    if sort == "group":
        return [rng.choice(kinds)] * (2 + rng.randrange(world.max_objects - 1))
    return [rng.choice(kinds) for _ in range(3 + rng.randrange(world.max_objects - 2))]


def arrange(kinds: list[Kind], rng: KeyedRandom, world: World) -> Scene:
    """Place objects of the given kinds at random without overlap, starting over when one does not fit."""
    background = rng.choice(world.backgrounds)
    while True:
        objects: list[SceneObject] = []
        for colour, shape in kinds:
            placed = _place(shape, colour, objects, rng, world)
            if placed is None:
                break
            objects.append(placed)
        else:
            return Scene(tuple(objects), background, world.image_size)


def move(scene: Scene, which: int, box: Box) -> Scene:
    objects = list(scene.objects)
    objects[which] = replace(objects[which], box=box)
    return replace(scene, objects=tuple(objects))


def fits(box: Box, others: list[SceneObject] | tuple[SceneObject, ...], image_size: int) -> bool:
    inside = min(box.x0, box.y0) >= EDGE and max(box.x1, box.y1) <= image_size - EDGE
    return inside and all(box.gap_to(other.box) >= GAP for other in others)


def _place(shape: str, colour: str, others: list[SceneObject], rng: KeyedRandom, world: World) -> SceneObject | None:
    size = rng.choice(world.sizes)
    for _ in range(TRIES_PER_OBJECT):
        extent = rng.uniform(*SIZES[size])
        x0 = rng.uniform(EDGE, world.image_size - EDGE - extent)
        y0 = rng.uniform(EDGE, world.image_size - EDGE - extent)
        box = Box(x0, y0, x0 + extent, y0 + extent)
        if fits(box, others, world.image_size):
            return SceneObject(shape, colour, size, box)
    return None


def words_of(world: World) -> list[str]:
    """The words of its captions: those of the grammar but for shapes, colours and sizes that it does not show."""
    tables = ((SHAPE_WORDS, world.shapes), (COLOUR_WORDS, world.colours), (SIZE_WORDS, world.sizes))
    unseen = {word for table, seen in tables for name in table if name not in seen for word in table[name]}
    return [word for word in vocabulary() if not {word, word.removesuffix("s")} & unseen]
