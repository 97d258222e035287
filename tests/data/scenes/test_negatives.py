from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpt.claims.boxes import Box
from dpt.claims.description import Description, Group, caption_text
from dpt.claims.facts import Count, Noun, Related, all_hold
from dpt.claims.words import OPPOSITE, vocabulary
from dpt.data.scenes.captions import describe_scene
from dpt.data.scenes.negatives import NEGATIVE_TYPES, false_description, false_scene, hard_caption, hard_image
from dpt.data.scenes.render import render
from dpt.data.scenes.world import FULL_WORLD, POCKET_WORLD, Scene, SceneObject, World, fits, make_scene
from dpt.keyed_random import KeyedRandom
from tests.data.scenes.strategies import worlds_with_scenes

WORDS = set(vocabulary())
types = st.sampled_from(NEGATIVE_TYPES)


def changes(right: Description, wrong: Description) -> list[str]:
    """What differs between two descriptions, one word for each field of a group that does."""
    found = ["relation"] * (right.relation != wrong.relation) + ["absent"] * (right.absent != wrong.absent)
    for a, b in zip(right.groups, wrong.groups, strict=True):
        found += ["colour"] * (a.noun.colour != b.noun.colour) + ["shape"] * (a.noun.shape != b.noun.shape)
        found += ["count"] * (a.n != b.n) + ["else"] * ((a.vague, a.noun.size) != (b.vague, b.noun.size))
    return found


@given(worlds_with_scenes(), types)
def test_a_hard_caption_is_false_and_differs_in_one_fact(drawn: tuple[World, Scene, int], kind: str) -> None:
    world, one, index = drawn
    rng = KeyedRandom("test", index)
    right = describe_scene(one, world, rng)
    wrong = false_description(right, one, kind, world, rng)
    if wrong is None:
        return
    assert all_hold(right.facts, one.objects)
    assert not all_hold(wrong.facts, one.objects)
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
def test_a_hard_caption_is_something_one_might_say(drawn: tuple[World, Scene, int], kind: str) -> None:
    world, one, index = drawn
    pair = hard_caption(one, world, KeyedRandom("test", index), kind)
    if pair is None:
        return
    assert pair.kind == kind
    assert pair.caption.text != pair.false_caption.text
    for said in (pair.caption, pair.false_caption):
        assert set(said.text.split()) <= WORDS
    nouns = [fact.noun for fact in pair.false_caption.facts if isinstance(fact, Count)]
    assert len(set(nouns)) == len(nouns)
    assert not {(noun.colour, noun.shape) for noun in nouns} & set(world.held_out_kinds)
    for fact in pair.false_caption.facts:
        if isinstance(fact, Related):
            assert (fact.first.shape, fact.relation, fact.second.shape) not in world.held_out_relations


def exchanged(before: Scene, after: Scene) -> list[tuple[SceneObject, SceneObject]]:
    return [(a, b) for a, b in zip(before.objects, after.objects, strict=True) if a != b]


@given(worlds_with_scenes(), types)
def test_a_hard_image_differs_in_one_fact_and_makes_the_caption_false(
    drawn: tuple[World, Scene, int], kind: str
) -> None:
    world, one, index = drawn
    hard = hard_image(one, world, KeyedRandom("test", index), kind)
    if hard is None:
        return
    other = hard.scene
    assert all_hold(hard.caption.facts, one.objects)
    assert not all_hold(hard.caption.facts, other.objects)
    assert (other.background, other.image_size) == (one.background, one.image_size)
    assert all(fits(thing.box, other.objects[:i], other.image_size) for i, thing in enumerate(other.objects))
    assert all(thing.kind in world.kinds for thing in other.objects)
    assert (render(one) != render(other)).any()
    if kind == "count":
        assert one_more_or_less(one, other)
        return
    changed = exchanged(one, other)
    if kind == "relation":
        assert [(a.kind, a.size) for a in one.objects] == [(b.kind, b.size) for b in other.objects]
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


def one_more_or_less(before: Scene, after: Scene) -> bool:
    a, b = Counter(before.objects), Counter(after.objects)
    difference = list((a - b).elements()) + list((b - a).elements())
    known = {(thing.kind, thing.size) for thing in before.objects}
    return len(difference) == 1 and (difference[0].kind, difference[0].size) in known


@given(worlds_with_scenes())
def test_a_turned_picture_shows_the_opposite_relation_clearly(drawn: tuple[World, Scene, int]) -> None:
    world, one, index = drawn
    hard = hard_image(one, world, KeyedRandom("test", index), "relation")
    if hard is None:
        return
    (said,) = (fact for fact in hard.caption.facts if isinstance(fact, Related))
    assert Related(said.first, OPPOSITE[said.relation], said.second).holds(hard.scene.objects)


@pytest.mark.parametrize("world", [FULL_WORLD, POCKET_WORLD])
def test_every_type_is_to_be_had_often(world: World) -> None:
    for kind in NEGATIVE_TYPES:
        captions = [hard_caption(make_scene(1, i, world), world, KeyedRandom(i), kind) for i in range(100)]
        images = [hard_image(make_scene(1, i, world), world, KeyedRandom(i), kind) for i in range(100)]
        # Only scenes with two single things have a relation to turn round.
        least = 25 if kind == "relation" else 80
        assert sum(c is not None for c in captions) >= least
        assert sum(i is not None for i in images) >= least


def thing(shape: str, colour: str, x: float) -> SceneObject:
    return SceneObject(shape, colour, "large", Box(x, 20, x + 20, 40))


def test_a_shape_change_never_names_a_thing_twice() -> None:
    """Of "a red circle and two red squares" it must not make "a red square and two red squares"."""
    right = Description((Group(Noun("red", "circle"), 1), Group(Noun("red", "square"), 2)))
    one = Scene((thing("circle", "red", 2), thing("square", "red", 24), thing("square", "red", 43)), "white", 66)
    two_shapes = World(shapes=("circle", "square"))
    assert all(false_description(right, one, "shape", two_shapes, KeyedRandom(i)) is None for i in range(20))


def test_a_shape_change_never_denies_what_it_says() -> None:
    """Of "a red circle without squares" it must not make "a red square without squares"."""
    right = Description((Group(Noun("red", "circle"), 1),), absent=Noun(shape="square"))
    one = Scene((thing("circle", "red", 20),), "white")
    found = [false_description(right, one, "shape", FULL_WORLD, KeyedRandom(i)) for i in range(40)]
    assert any(found)
    assert all("square" not in caption_text(wrong).split() for wrong in found if wrong)


def test_exchanging_colours_of_one_shape_would_be_exchanging_places() -> None:
    right = Description((Group(Noun("red", "circle"), 1), Group(Noun("blue", "circle"), 1)), "left")
    one = Scene((thing("circle", "red", 4), thing("circle", "blue", 34)), "white")
    for i in range(30):
        changed = false_scene(right, one, "colour", FULL_WORLD, KeyedRandom(i))
        assert changed is not None
        assert len(exchanged(one, changed)) == 1


@pytest.mark.parametrize("kind", ["shape", "colour"])
def test_a_world_with_nothing_to_change_to_gives_nothing(kind: str) -> None:
    world = World(shapes=("circle",)) if kind == "shape" else World(colours=("red",))
    for i in range(20):
        one = make_scene(0, i, world)
        assert hard_caption(one, world, KeyedRandom(i), kind) is None
        assert hard_image(one, world, KeyedRandom(i), kind) is None


def test_the_same_key_gives_the_same_negatives() -> None:
    one = make_scene(0, 7)
    assert hard_caption(one, FULL_WORLD, KeyedRandom(1)) == hard_caption(one, FULL_WORLD, KeyedRandom(1))
    assert hard_image(one, FULL_WORLD, KeyedRandom(1)) == hard_image(one, FULL_WORLD, KeyedRandom(1))
