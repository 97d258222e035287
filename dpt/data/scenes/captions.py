"""Captions of scenes: a description is drawn first, then put into words.

`describe_scene` is complete and true. `drop_facts` makes it like web alt-text: still true, but with attributes,
relations, counts or whole objects left out or made vague.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from dpt.claims.boxes import RELATIONS, related
from dpt.claims.description import Caption, Description, Group, caption_text
from dpt.claims.facts import Noun
from dpt.claims.words import SCENE_WORDS
from dpt.data.scenes.world import Scene, SceneObject, World
from dpt.keyed_random import KeyedRandom

OMISSION = 0.3


def scene_caption(
    scene: Scene, world: World, rng: KeyedRandom, noise: float = 0.0, omission: float = OMISSION
) -> Caption:
    """A true caption; `noise` in [0, 1] scales how many facts it drops.

    `omission` is the probability, at noise 1, that one kind of object is left out.
    """
    description = describe_scene(scene, world, rng)
    if noise and rng.chance(noise * 0.08):
        return Caption(rng.choice(SCENE_WORDS), ())
    if noise:
        description = drop_facts(description, rng, noise, omission)
    return Caption(caption_text(description, rng), description.facts)


def describe_scene(scene: Scene, world: World, rng: KeyedRandom) -> Description:
    """A complete and true description, drawn at random."""
    counts = Counter(thing.kind for thing in scene.objects)
    kinds = rng.sample(list(counts), len(counts))
    groups = tuple(Group(Noun(colour, shape), counts[colour, shape]) for colour, shape in kinds)
    singles = [g for g in groups if g.n == 1]
    if len(singles) >= 2 and rng.chance(0.6):
        ordered = (*singles[:2], *(g for g in groups if g not in singles[:2]))
        relation = _true_relation(scene, ordered[0].noun, ordered[1].noun, world, rng)
        if relation:
            return Description(ordered if rng.chance(0.5) else ordered[:2], relation)
    if len(counts) > 1 and rng.chance(0.15):
        by_shape = _by_shape(scene)
        if by_shape:
            return Description(by_shape)
    if rng.chance(0.2):
        return Description(groups, absent=_something_absent(scene, world, rng))
    return Description(groups)


def drop_facts(description: Description, rng: KeyedRandom, noise: float, omission: float = OMISSION) -> Description:
    """The description with facts left out or made vague; it stays true."""
    groups = list(description.groups)
    relation = None if rng.chance(0.5 * noise) else description.relation
    absent = None if rng.chance(0.5 * noise) else description.absent
    if len(groups) > 1 and rng.chance(omission * noise):
        groups.pop(rng.randrange(len(groups)))
        relation = None
    merged: dict[Noun, Group] = {}
    for group in groups:
        noun = group.noun
        if rng.chance(0.35 * noise):
            noun = replace(noun, colour=None)
        if rng.chance(0.1 * noise):
            noun = replace(noun, shape=None)
        vague = group.n > 1 and rng.chance(0.5 * noise)
        before = merged.get(noun)
        if before:
            group, vague = replace(group, n=group.n + before.n), vague or before.vague
        merged[noun] = Group(noun, group.n, vague)
    if relation and len(merged) < len(groups):
        relation = None
    return Description(tuple(merged.values()), relation, absent, exact=False)


def _true_relation(scene: Scene, first: Noun, second: Noun, world: World, rng: KeyedRandom) -> str | None:
    a = next(thing for thing in scene.objects if first.matches(thing))
    b = next(thing for thing in scene.objects if second.matches(thing))
    true = [
        relation
        for relation in RELATIONS
        if related(a.box, b.box, relation) and (a.shape, relation, b.shape) not in world.held_out_relations
    ]
    return rng.choice(true) if true else None


def _by_shape(scene: Scene) -> tuple[Group, ...] | None:
    """ "three circles", whatever their colours."""
    counts = Counter(thing.shape for thing in scene.objects)
    if max(counts.values()) < 2:
        return None
    return tuple(Group(Noun(shape=shape), n) for shape, n in counts.items())


def _something_absent(scene: Scene, world: World, rng: KeyedRandom) -> Noun | None:
    """A shape, or a kind whose colour or shape does occur, that the scene does not contain."""
    shapes = [shape for shape in world.shapes if all(thing.shape != shape for thing in scene.objects)]
    near = [kind for kind in world.kinds if _close_to(kind, scene.objects)]
    if near and rng.chance(0.3):
        return Noun(*rng.choice(near))
    return Noun(shape=rng.choice(shapes)) if shapes else None


def _close_to(kind: tuple[str, str], objects: tuple[SceneObject, ...]) -> bool:
    colour, shape = kind
    return all(thing.kind != kind for thing in objects) and any(
        colour == thing.colour or shape == thing.shape for thing in objects
    )
