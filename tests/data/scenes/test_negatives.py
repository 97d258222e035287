from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpt.claims.facts import Box, Count, Noun, Related, all_hold
from dpt.claims.words import OPPOSITE, Description, Group, caption_text, vocabulary
from dpt.data.scenes.captions import (
    NEGATIVE_TYPES,
    describe_scene,
    false_description,
    false_scene,
    hard_caption,
    hard_image,
)
from dpt.data.scenes.render import render
from dpt.data.scenes.world import FULL_WORLD, POCKET_WORLD, Scene, SceneObject, World, fits, make_scene
from dpt.keyed_random import KeyedRandom
from tests.data.scenes.strategies import worlds_with_scenes

WORDS = set(vocabulary())
types = st.sampled_from(NEGATIVE_TYPES)


def changes(right: Description, wrong: Description) -> list[str]:
    """The fields in which two descriptions differ."""
    differences = ["relation"] * (right.relation != wrong.relation) + ["absent"] * (right.absent != wrong.absent)
    for a, b in zip(right.groups, wrong.groups, strict=True):
        differences += ["colour"] * (a.noun.colour != b.noun.colour) + ["shape"] * (a.noun.shape != b.noun.shape)
        differences += ["count"] * (a.n != b.n) + ["else"] * ((a.vague, a.noun.size) != (b.vague, b.noun.size))
    return differences


@given(worlds_with_scenes(), types)
def test_hard_caption_is_false_and_differs_in_one_fact(drawn: tuple[World, Scene, int], kind: str) -> None:
    world, scene, index = drawn
    rng = KeyedRandom("test", index)
    right = describe_scene(scene, world, rng)
    wrong = false_description(right, scene, kind, world, rng)
    if wrong is None:
        return
    assert all_hold(right.facts, scene.objects)
    assert not all_hold(wrong.facts, scene.objects)
    changed = changes(right, wrong)
    if changed == ["colour", "colour"]:
        first, second = (i for i, g in enumerate(right.groups) if g.noun != wrong.groups[i].noun)
        assert wrong.groups[first].noun.colour == right.groups[second].noun.colour
        assert wrong.groups[second].noun.colour == right.groups[first].noun.colour
        assert kind == "colour"
    else:
        assert changed == [kind]
    if kind == "count":
        assert sum(abs(a.n - b.n) for a, b in zip(right.groups, wrong.groups, strict=True)) == 1
    if kind == "relation":
        assert right.relation and wrong.relation == OPPOSITE[right.relation]


@given(worlds_with_scenes(), types)
def test_hard_caption_is_sensible(drawn: tuple[World, Scene, int], kind: str) -> None:
    world, scene, index = drawn
    pair = hard_caption(scene, world, KeyedRandom("test", index), kind)
    if pair is None:
        return
    assert pair.kind == kind
    assert pair.caption.text != pair.false_caption.text
    for caption in (pair.caption, pair.false_caption):
        assert set(caption.text.split()) <= WORDS
    nouns = [fact.noun for fact in pair.false_caption.facts if isinstance(fact, Count)]
    assert len(set(nouns)) == len(nouns)
    assert not {(noun.colour, noun.shape) for noun in nouns} & set(world.held_out_kinds)
    for fact in pair.false_caption.facts:
        if isinstance(fact, Related):
            assert (fact.first.shape, fact.relation, fact.second.shape) not in world.held_out_relations


def changed_objects(before: Scene, after: Scene) -> list[tuple[SceneObject, SceneObject]]:
    return [(a, b) for a, b in zip(before.objects, after.objects, strict=True) if a != b]


@given(worlds_with_scenes(), types)
def test_hard_image_differs_in_one_fact_and_makes_the_caption_false(drawn: tuple[World, Scene, int], kind: str) -> None:
    world, scene, index = drawn
    hard = hard_image(scene, world, KeyedRandom("test", index), kind)
    if hard is None:
        return
    other = hard.scene
    assert all_hold(hard.caption.facts, scene.objects)
    assert not all_hold(hard.caption.facts, other.objects)
    assert (other.background, other.image_size) == (scene.background, scene.image_size)
    assert all(fits(thing.box, other.objects[:i], other.image_size) for i, thing in enumerate(other.objects))
    assert all(thing.kind in world.kinds for thing in other.objects)
    assert (render(scene) != render(other)).any()
    if kind == "count":
        assert differs_by_one_object(scene, other)
        return
    changed = changed_objects(scene, other)
    if kind == "relation":
        assert [(a.kind, a.size) for a in scene.objects] == [(b.kind, b.size) for b in other.objects]
        (a, a_after), (b, b_after) = changed
        assert a_after.box.centre == pytest.approx(b.box.centre)
        assert b_after.box.centre == pytest.approx(a.box.centre)
        assert a_after.box.width == pytest.approx(a.box.width)
    elif kind == "shape":
        ((a, b),) = changed
        assert (a.colour, a.size, a.box) == (b.colour, b.size, b.box)
    else:
        assert all((a.shape, a.size, a.box) == (b.shape, b.size, b.box) for a, b in changed)
        assert len(changed) in (1, 2)
        if len(changed) == 2:
            (a, a_after), (b, b_after) = changed
            assert (a_after.colour, b_after.colour) == (b.colour, a.colour)
            assert a.shape != b.shape


def differs_by_one_object(before: Scene, after: Scene) -> bool:
    a, b = Counter(before.objects), Counter(after.objects)
    difference = list((a - b).elements()) + list((b - a).elements())
    kinds_before = {(thing.kind, thing.size) for thing in before.objects}
    return len(difference) == 1 and (difference[0].kind, difference[0].size) in kinds_before


@given(worlds_with_scenes())
def test_swapped_objects_show_the_opposite_relation(drawn: tuple[World, Scene, int]) -> None:
    world, scene, index = drawn
    hard = hard_image(scene, world, KeyedRandom("test", index), "relation")
    if hard is None:
        return
    (relation,) = (fact for fact in hard.caption.facts if isinstance(fact, Related))
    assert Related(relation.first, OPPOSITE[relation.relation], relation.second).holds(hard.scene.objects)


@pytest.mark.parametrize("world", [FULL_WORLD, POCKET_WORLD])
def test_every_negative_type_is_common(world: World) -> None:
    for kind in NEGATIVE_TYPES:
        captions = [hard_caption(make_scene(1, i, world), world, KeyedRandom(i), kind) for i in range(100)]
        images = [hard_image(make_scene(1, i, world), world, KeyedRandom(i), kind) for i in range(100)]
        # Only scenes with two single objects have a relation to reverse.
        least = 25 if kind == "relation" else 80
        assert sum(c is not None for c in captions) >= least
        assert sum(i is not None for i in images) >= least


def thing(shape: str, colour: str, x: float) -> SceneObject:
    return SceneObject(shape, colour, "large", Box(x, 20, x + 20, 40))


def test_shape_change_names_no_kind_twice() -> None:
    """ "a red circle and two red squares" must not become "a red square and two red squares"."""
    right = Description((Group(Noun("red", "circle"), 1), Group(Noun("red", "square"), 2)))
    scene = Scene((thing("circle", "red", 2), thing("square", "red", 24), thing("square", "red", 43)), "white", 66)
    two_shapes = World(shapes=("circle", "square"))
    assert all(false_description(right, scene, "shape", two_shapes, KeyedRandom(i)) is None for i in range(20))


def test_shape_change_does_not_contradict_an_absence() -> None:
    """ "a red circle without squares" must not become "a red square without squares"."""
    right = Description((Group(Noun("red", "circle"), 1),), absent=Noun(shape="square"))
    scene = Scene((thing("circle", "red", 20),), "white")
    descriptions = [false_description(right, scene, "shape", FULL_WORLD, KeyedRandom(i)) for i in range(40)]
    assert any(descriptions)
    assert all("square" not in caption_text(wrong).split() for wrong in descriptions if wrong)


def test_colours_are_not_swapped_between_equal_shapes() -> None:
    right = Description((Group(Noun("red", "circle"), 1), Group(Noun("blue", "circle"), 1)), "left")
    scene = Scene((thing("circle", "red", 4), thing("circle", "blue", 34)), "white")
    for i in range(30):
        changed = false_scene(right, scene, "colour", FULL_WORLD, KeyedRandom(i))
        assert changed is not None
        assert len(changed_objects(scene, changed)) == 1


@pytest.mark.parametrize("kind", ["shape", "colour"])
def test_world_without_alternatives_has_no_negatives(kind: str) -> None:
    world = World(shapes=("circle",)) if kind == "shape" else World(colours=("red",))
    for i in range(20):
        scene = make_scene(0, i, world)
        assert hard_caption(scene, world, KeyedRandom(i), kind) is None
        assert hard_image(scene, world, KeyedRandom(i), kind) is None


def test_same_key_gives_the_same_negatives() -> None:
    scene = make_scene(0, 7)
    assert hard_caption(scene, FULL_WORLD, KeyedRandom(1)) == hard_caption(scene, FULL_WORLD, KeyedRandom(1))
    assert hard_image(scene, FULL_WORLD, KeyedRandom(1)) == hard_image(scene, FULL_WORLD, KeyedRandom(1))
