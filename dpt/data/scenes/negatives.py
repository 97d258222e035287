"""Hard negatives: a caption that is false for the picture, or a picture that differs in just one fact."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dpt.data.scenes.captions import Caption, Description, Group, describe, say
from dpt.data.scenes.draws import Draws
from dpt.data.scenes.facts import Related, all_hold
from dpt.data.scenes.layout import TRIES_PER_OBJECT, fits
from dpt.data.scenes.words import OPPOSITE
from dpt.data.scenes.world import SIZES, Box, Scene, SceneObject, World

NEGATIVE_TYPES = ("colour", "relation", "count", "shape")


@dataclass(frozen=True)
class HardCaption:
    """`wrong` is false for the scene that `right` is true of."""

    kind: str
    right: Caption
    wrong: Caption


@dataclass(frozen=True)
class HardImage:
    """`right` is true of the scene it was drawn for and false of `scene`, which differs from it in one fact."""

    kind: str
    right: Caption
    scene: Scene


def hard_caption(scene: Scene, world: World, draws: Draws, kind: str | None = None) -> HardCaption | None:
    """A true caption and its falsification; None if nothing in the scene can be falsified that way."""
    for _ in range(8):
        chosen = kind or draws.pick(NEGATIVE_TYPES)
        right = describe(scene, world, draws)
        wrong = _falsify(right, chosen, world, draws)
        if wrong is not None and not all_hold(wrong.facts, scene.objects):
            return HardCaption(chosen, Caption(say(right, draws), right.facts), Caption(say(wrong, draws), wrong.facts))
    return None


def _falsify(right: Description, kind: str, world: World, draws: Draws) -> Description | None:
    groups = list(right.groups)
    at = draws.below(len(groups))
    noun = groups[at].noun
    if kind == "relation":
        return replace(right, relation=OPPOSITE[right.relation]) if right.relation else None
    if kind == "count":
        n = groups[at].n + (1 if draws.chance(0.5) else -1)
        if (right.relation and at < 2) or not 1 <= n <= 5:
            return None
        groups[at] = Group(noun, n)
        return replace(right, groups=tuple(groups))
    other = 1 - at if len(groups) == 2 else draws.below(len(groups))
    partner = groups[other].noun
    if kind == "colour":
        if partner.colour != noun.colour and partner.shape != noun.shape:
            groups[at] = replace(groups[at], noun=replace(noun, colour=partner.colour))
            groups[other] = replace(groups[other], noun=replace(partner, colour=noun.colour))
        elif noun.colour:
            changed = draws.pick([colour for colour in world.colours if colour != noun.colour])
            groups[at] = replace(groups[at], noun=replace(noun, colour=changed))
        return replace(right, groups=tuple(groups))
    changed = draws.pick([shape for shape in world.shapes if shape != noun.shape])
    groups[at] = replace(groups[at], noun=replace(noun, shape=changed))
    return replace(right, groups=tuple(groups))


def hard_image(scene: Scene, world: World, draws: Draws, kind: str | None = None) -> HardImage | None:
    """A caption of the scene and a changed scene for which just that caption is false."""
    for _ in range(8):
        chosen = kind or draws.pick(NEGATIVE_TYPES)
        right = describe(scene, world, draws)
        changed = change(scene, chosen, world, draws)
        if changed is None or all_hold(right.facts, changed.objects):
            continue
        if chosen == "relation" and not any(isinstance(fact, Related) for fact in right.facts):
            continue
        return HardImage(chosen, Caption(say(right, draws), right.facts), changed)
    return None


def change(scene: Scene, kind: str, world: World, draws: Draws) -> Scene | None:
    """The scene with one fact changed: two colours swapped, two places swapped, one object more or less, one shape."""
    objects = list(scene.objects)
    at = draws.below(len(objects))
    thing = objects[at]
    others = [i for i in range(len(objects)) if i != at]
    if kind == "relation":
        partners = [i for i in others if objects[i].kind != thing.kind]
        return _swap_places(scene, at, draws.pick(partners)) if partners else None
    if kind == "count":
        return _more_or_less(scene, at, world, draws)
    if kind == "shape":
        objects[at] = replace(thing, shape=draws.pick([s for s in world.shapes if s != thing.shape]))
    else:
        partners = [i for i in others if objects[i].colour != thing.colour]
        if partners:
            other = draws.pick(partners)
            objects[at], objects[other] = (
                replace(thing, colour=objects[other].colour),
                replace(objects[other], colour=thing.colour),
            )
        else:
            objects[at] = replace(thing, colour=draws.pick([c for c in world.colours if c != thing.colour]))
    if any(o.kind in world.held_out_kinds for o in objects):
        return None
    return replace(scene, objects=tuple(objects))


def _swap_places(scene: Scene, a: int, b: int) -> Scene | None:
    objects = list(scene.objects)
    objects[a], objects[b] = (
        replace(objects[a], box=_centred(objects[b].box.centre, objects[a].box.width)),
        replace(objects[b], box=_centred(objects[a].box.centre, objects[b].box.width)),
    )
    if all(fits(o.box, objects[:i], scene.image_size) for i, o in enumerate(objects)):
        return replace(scene, objects=tuple(objects))
    return None


def _more_or_less(scene: Scene, at: int, world: World, draws: Draws) -> Scene | None:
    objects = list(scene.objects)
    if len(objects) > 1 and (draws.chance(0.5) or len(objects) >= world.max_objects):
        del objects[at]
        return replace(scene, objects=tuple(objects))
    if len(objects) >= world.max_objects:
        return None
    twin = objects[at]
    for _ in range(TRIES_PER_OBJECT):
        extent = draws.between(*SIZES[twin.size])
        half, far = extent / 2, scene.image_size - extent / 2
        box = _centred((draws.between(half, far), draws.between(half, far)), extent)
        if fits(box, objects, scene.image_size):
            return replace(scene, objects=(*objects, SceneObject(twin.shape, twin.colour, twin.size, box)))
    return None


def _centred(centre: tuple[float, float], extent: float) -> Box:
    x, y = centre
    return Box(x - extent / 2, y - extent / 2, x + extent / 2, y + extent / 2)


