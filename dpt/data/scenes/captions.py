"""Captions of scenes, and hard negatives: a false caption, or a false scene, that differs in one fact.

`describe_scene` is complete and true. `drop_facts` makes it like web alt-text: still true, but with attributes,
relations, counts or whole objects left out or made vague.

The fact that a negative changes, by type:
- of a caption: the colour of one group, or the colours of two swapped; the relation reversed; one number up or down
  by one; the shape of one group;
- of a scene: the colour of one object, or the colours of two of different shape swapped; the two related objects
  swapped; one object more or less; the shape of one object.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from dpt.claims.facts import RELATIONS, Box, Noun, all_hold, related
from dpt.claims.words import NUMBERS, OPPOSITE, SCENE_WORDS, Caption, Description, Group, caption_text
from dpt.data.scenes.world import SIZES, TRIES_PER_OBJECT, Scene, SceneObject, World, fits
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


NEGATIVE_TYPES = ("colour", "relation", "count", "shape")

TRIES = 8


@dataclass(frozen=True)
class HardCaption:
    """A true caption of a scene, and a caption that is false for it."""

    kind: str
    caption: Caption
    false_caption: Caption


@dataclass(frozen=True)
class HardImage:
    """A true caption of a scene, and a scene that differs in one fact, so that the caption is false for it."""

    kind: str
    caption: Caption
    scene: Scene


def hard_caption(scene: Scene, world: World, rng: KeyedRandom, kind: str | None = None) -> HardCaption | None:
    """A true and a false caption; None if the scene admits no negative of this type."""
    for _ in range(TRIES):
        chosen = kind or rng.choice(NEGATIVE_TYPES)
        right = describe_scene(scene, world, rng)
        wrong = false_description(right, scene, chosen, world, rng)
        if wrong is not None:
            caption = Caption(caption_text(right, rng), right.facts)
            return HardCaption(chosen, caption, Caption(caption_text(wrong, rng), wrong.facts))
    return None


def hard_image(scene: Scene, world: World, rng: KeyedRandom, kind: str | None = None) -> HardImage | None:
    """A true caption and a false scene; None if the scene admits no negative of this type."""
    for _ in range(TRIES):
        chosen = kind or rng.choice(NEGATIVE_TYPES)
        right = describe_scene(scene, world, rng)
        changed = false_scene(right, scene, chosen, world, rng)
        if changed is not None:
            return HardImage(chosen, Caption(caption_text(right, rng), right.facts), changed)
    return None


def false_description(
    right: Description, scene: Scene, kind: str, world: World, rng: KeyedRandom
) -> Description | None:
    """The description with one fact changed, false for the scene; None if that is not possible."""
    wrong = _alter(right, kind, world, rng)
    if wrong is None or not _is_sensible(wrong, world) or all_hold(wrong.facts, scene.objects):
        return None
    return wrong


def false_scene(right: Description, scene: Scene, kind: str, world: World, rng: KeyedRandom) -> Scene | None:
    """The scene with one fact changed, for which the description is false; None if that is not possible."""
    at = rng.randrange(len(scene.objects))
    if kind == "relation":
        changed = _swap_related(right, scene)
    elif kind == "count":
        changed = _more_or_less(scene, at, world, rng)
    elif kind == "shape":
        changed = _reshape(scene, at, world, rng)
    else:
        changed = _recolour(scene, at, world, rng)
    return None if changed is None or all_hold(right.facts, changed.objects) else changed


def _alter(right: Description, kind: str, world: World, rng: KeyedRandom) -> Description | None:
    groups = list(right.groups)
    at = rng.randrange(len(groups))
    noun = groups[at].noun
    if kind == "relation":
        return replace(right, relation=OPPOSITE[right.relation]) if right.relation else None
    if kind == "count":
        n = groups[at].n + (1 if rng.chance(0.5) else -1)
        if (right.relation and at < 2) or not 1 <= n < len(NUMBERS):
            return None
        groups[at] = replace(groups[at], n=n)
        return replace(right, groups=tuple(groups))
    other = 1 - at if len(groups) == 2 else rng.randrange(len(groups))
    partner = groups[other].noun
    if kind == "colour" and partner.colour != noun.colour and partner.shape != noun.shape:
        groups[at] = replace(groups[at], noun=replace(noun, colour=partner.colour))
        groups[other] = replace(groups[other], noun=replace(partner, colour=noun.colour))
        return replace(right, groups=tuple(groups))
    current = noun.colour if kind == "colour" else noun.shape
    rest = [name for name in (world.colours if kind == "colour" else world.shapes) if name != current]
    if current is None or not rest:
        return None
    changed = rng.choice(rest)
    groups[at] = replace(
        groups[at], noun=replace(noun, colour=changed) if kind == "colour" else replace(noun, shape=changed)
    )
    return replace(right, groups=tuple(groups))


def _is_sensible(description: Description, world: World) -> bool:
    """Whether no noun occurs twice or is also denied, and nothing is held out of the world."""
    nouns = [group.noun for group in description.groups]
    if len(set(nouns)) < len(nouns) or any((n.colour, n.shape) in world.held_out_kinds for n in nouns):
        return False
    if description.absent and any(description.absent.covers(noun) for noun in nouns):
        return False
    relation = description.relation
    return not relation or (nouns[0].shape, relation, nouns[1].shape) not in world.held_out_relations


def _swap_related(right: Description, scene: Scene) -> Scene | None:
    if not right.relation:
        return None
    objects = list(scene.objects)
    a, b = (objects.index(group.noun.among(objects)[0]) for group in right.groups[:2])
    objects[a], objects[b] = (
        replace(objects[a], box=_centred(objects[b].box.centre, objects[a].box.width)),
        replace(objects[b], box=_centred(objects[a].box.centre, objects[b].box.width)),
    )
    if all(fits(o.box, objects[:i], scene.image_size) for i, o in enumerate(objects)):
        return replace(scene, objects=tuple(objects))
    return None


def _more_or_less(scene: Scene, at: int, world: World, rng: KeyedRandom) -> Scene | None:
    objects = list(scene.objects)
    if len(objects) > 1 and (rng.chance(0.5) or len(objects) >= world.max_objects):
        del objects[at]
        return replace(scene, objects=tuple(objects))
    if len(objects) >= world.max_objects:
        return None
    twin = objects[at]
    for _ in range(TRIES_PER_OBJECT):
        extent = rng.uniform(*SIZES[twin.size])
        half, far = extent / 2, scene.image_size - extent / 2
        box = _centred((rng.uniform(half, far), rng.uniform(half, far)), extent)
        if fits(box, objects, scene.image_size):
            return replace(scene, objects=(*objects, SceneObject(twin.shape, twin.colour, twin.size, box)))
    return None


def _reshape(scene: Scene, at: int, world: World, rng: KeyedRandom) -> Scene | None:
    thing = scene.objects[at]
    shapes = [s for s in world.shapes if s != thing.shape and (thing.colour, s) not in world.held_out_kinds]
    return _with(scene, {at: replace(thing, shape=rng.choice(shapes))}) if shapes else None


def _recolour(scene: Scene, at: int, world: World, rng: KeyedRandom) -> Scene | None:
    """Swap colours with an object of another shape: of the same shape, it would be a swap of places."""
    thing = scene.objects[at]
    swaps = [
        {at: replace(thing, colour=other.colour), i: replace(other, colour=thing.colour)}
        for i, other in enumerate(scene.objects)
        if other.colour != thing.colour and other.shape != thing.shape
    ]
    possible = [swap for swap in swaps if all(o.kind not in world.held_out_kinds for o in swap.values())]
    if possible:
        return _with(scene, rng.choice(possible))
    colours = [c for c in world.colours if c != thing.colour and (c, thing.shape) not in world.held_out_kinds]
    return _with(scene, {at: replace(thing, colour=rng.choice(colours))}) if colours else None


def _with(scene: Scene, changed: dict[int, SceneObject]) -> Scene:
    return replace(scene, objects=tuple(changed.get(i, thing) for i, thing in enumerate(scene.objects)))


def _centred(centre: tuple[float, float], extent: float) -> Box:
    x, y = centre
    return Box(x - extent / 2, y - extent / 2, x + extent / 2, y + extent / 2)
