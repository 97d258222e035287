from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dpt.claims.facts import RELATION_MARGIN, Box, Noun
from dpt.claims.words import ANYTHING, SHAPE_WORDS, vocabulary
from dpt.data.scenes.referring import (
    KINDS,
    ExtremeReference,
    NounReference,
    Reference,
    RelativeReference,
    SceneExpression,
    reference_text,
    referring_expression,
    referring_expressions,
    resolve,
)
from dpt.data.scenes.world import FULL_WORLD, Scene, SceneObject, World, make_scene
from dpt.keyed_random import KeyedRandom
from tests.data.scenes.strategies import worlds_with_scenes

WORDS = set(vocabulary())


def thing(shape: str, colour: str, x: float, y: float, size: str = "large") -> SceneObject:
    extent = 20.0 if size == "large" else 14.0
    return SceneObject(shape, colour, size, Box(x, y, x + extent, y + extent))


RED_LEFT = thing("circle", "red", 2, 4)
RED_RIGHT = thing("circle", "red", 40, 2)
BLUE_SMALL = thing("square", "blue", 22, 40, "small")
THREE = (RED_LEFT, BLUE_SMALL, RED_RIGHT)
CIRCLE, SQUARE = Noun(shape="circle"), Noun(shape="square")


def test_resolve_by_attributes() -> None:
    assert resolve(NounReference(CIRCLE), THREE) == [0, 2]
    assert resolve(NounReference(Noun("blue")), THREE) == [1]
    assert resolve(NounReference(Noun(size="small")), THREE) == [1]
    assert resolve(NounReference(Noun("green")), THREE) == []


def test_resolve_by_relation() -> None:
    assert resolve(RelativeReference(CIRCLE, "left", SQUARE), THREE) == [0]
    assert resolve(RelativeReference(CIRCLE, "right", Noun("blue")), THREE) == [2]
    assert resolve(RelativeReference(CIRCLE, "above", SQUARE), THREE) == [0, 2]
    assert resolve(RelativeReference(SQUARE, "below", CIRCLE), THREE) == [], "which circle?"


def test_resolve_by_extreme() -> None:
    assert resolve(ExtremeReference(CIRCLE, "left"), THREE) == [0]
    assert resolve(ExtremeReference(Noun(), "below"), THREE) == [1]
    assert resolve(ExtremeReference(CIRCLE, "above"), THREE) == [], "two pixels higher are less than the margin"
    assert resolve(ExtremeReference(CIRCLE, "above"), THREE, margin=1) == [2]
    assert resolve(ExtremeReference(SQUARE, "left"), THREE) == [], "the only square is not the leftmost one"


def centre(box: Box) -> dict[str, float]:
    x, y = box.centre
    return {"left": -x, "right": x, "above": -y, "below": y}


def resolve_by_sets(reference: Reference, objects: tuple[SceneObject, ...], margin: float) -> set[Box]:
    """An independent implementation of `resolve`."""

    def named(noun: Noun) -> set[SceneObject]:
        attributes = {"colour": noun.colour, "shape": noun.shape, "size": noun.size}
        return {o for o in objects if all(getattr(o, key) == value for key, value in attributes.items() if value)}

    candidates = named(reference.noun)
    if isinstance(reference, ExtremeReference):
        side = reference.side
        ahead = sorted(candidates, key=lambda o: centre(o.box)[side])
        clear = len(ahead) > 1 and centre(ahead[-1].box)[side] - centre(ahead[-2].box)[side] >= margin
        candidates = {ahead[-1]} if clear else set()
    if isinstance(reference, RelativeReference):
        side = reference.relation
        landmarks = named(reference.landmark)
        if len(landmarks) != 1:
            return set()
        (mark,) = landmarks
        candidates = {o for o in candidates - landmarks if centre(o.box)[side] - centre(mark.box)[side] >= margin}
    return {o.box for o in candidates}


@settings(max_examples=60)
@given(worlds_with_scenes())
def test_every_expression_refers_to_its_box_only(drawn: tuple[World, Scene, int]) -> None:
    world, scene, index = drawn
    for expression in referring_expressions(scene, world, KeyedRandom("test", index)):
        target = scene.objects[expression.target]
        assert expression.box == target.box
        assert resolve(expression.reference, scene.objects) == [expression.target]
        assert resolve_by_sets(expression.reference, scene.objects, RELATION_MARGIN) == {target.box}
        check_wording(expression, target, world, scene)


def check_wording(expression: SceneExpression, target: SceneObject, world: World, scene: Scene) -> None:
    text, (begin, end) = expression.text, expression.span
    assert set(text.split()) <= WORDS
    assert text.startswith("the ")
    head = text[begin:end]
    noun = expression.reference.noun
    assert head in (SHAPE_WORDS[target.shape] if noun.shape else ANYTHING)
    assert text[begin - 1] == " "
    assert text[end : end + 1] in ("", " ")
    # Everything before the head belongs to its noun phrase; what follows starts with the relation.
    assert len(text[:begin].split()) == 1 + sum(
        part is not None for part in (noun.colour, noun.size, getattr(expression.reference, "side", None))
    )
    if isinstance(expression.reference, RelativeReference):
        landmark = next(o for o in scene.objects if expression.reference.landmark.matches(o))
        assert (target.shape, expression.reference.relation, landmark.shape) not in world.held_out_relations
    else:
        assert end == len(text)


@given(worlds_with_scenes(), st.sets(st.sampled_from(sorted(KINDS)), min_size=1))
def test_sampled_expression_has_a_requested_kind(drawn: tuple[World, Scene, int], kinds: set[str]) -> None:
    world, scene, index = drawn
    expression = referring_expression(scene, world, KeyedRandom("test", index), sorted(kinds))
    if expression is not None:
        assert expression.kind in kinds
        assert resolve(expression.reference, scene.objects) == [expression.target]
    assert expression == referring_expression(scene, world, KeyedRandom("test", index), sorted(kinds))


def test_size_is_named_only_where_it_distinguishes_objects() -> None:
    twins = Scene((RED_LEFT, thing("circle", "red", 42, 10, "small")), "white")
    texts = {e.text for e in referring_expressions(twins, FULL_WORLD, KeyedRandom(1))}
    assert any(text.split()[1] in ("small", "little") for text in texts)
    apart = Scene((RED_LEFT, thing("square", "blue", 42, 10, "small")), "white")
    words = {w for e in referring_expressions(apart, FULL_WORLD, KeyedRandom(1)) for w in e.text.split()}
    assert not words & {"small", "little", "large", "big"}


def test_indistinguishable_objects_have_no_expression() -> None:
    grid = [thing("circle", "red", x, y) for x, y in ((2, 3), (40, 2), (3, 40), (41, 41))]
    assert referring_expressions(Scene(tuple(grid), "white"), FULL_WORLD, KeyedRandom(1)) == []
    assert referring_expression(Scene(tuple(grid), "white"), FULL_WORLD, KeyedRandom(1)) is None


def test_near_miss_makes_an_expression_ambiguous() -> None:
    """A second circle, a little to the left of the square, makes "the circle left of the square" ambiguous."""
    near = thing("circle", "green", 18, 2, "small")
    scene = Scene((thing("circle", "red", 2, 42), near, thing("square", "blue", 18, 20)), "white")
    assert len(resolve(RelativeReference(CIRCLE, "left", SQUARE), scene.objects)) == 1
    texts = [
        reference_text(e.reference, scene, e.target).text
        for e in referring_expressions(scene, FULL_WORLD, KeyedRandom(1))
    ]
    assert "the circle to the left of the square" not in texts
    assert "the red circle to the left of the square" in texts


def test_reference_without_rng_uses_the_plainest_words() -> None:
    scene = Scene(THREE, "white")
    for reference, text, head in (
        (NounReference(Noun("red", "circle", "small")), "the small red circle", "circle"),
        (RelativeReference(CIRCLE, "left", SQUARE), "the circle to the left of the square", "circle"),
        (ExtremeReference(Noun("red"), "left"), "the leftmost red shape", "shape"),
    ):
        expression = reference_text(reference, scene, 0)
        assert expression.text == text
        assert text[slice(*expression.span)] == head


def test_every_kind_of_expression_occurs() -> None:
    expressions = [referring_expression(make_scene(2, i), FULL_WORLD, KeyedRandom(i)) for i in range(200)]
    assert {e.kind for e in expressions if e} == set(KINDS)
    assert sum(e is None for e in expressions) < 5
