"""Layouts, their differences, and the rule controller."""

from __future__ import annotations

import random

import pytest

from dpt.claims.controller import propose
from dpt.claims.facts import Box, Noun
from dpt.claims.instructions import UnsupportedInstruction, parse_instruction
from dpt.claims.judge import Detection, judge
from dpt.claims.layout import (
    Layout,
    PlacedObject,
    apply_edits,
    box_at,
    changes,
    check_box,
    detections_of,
    diff,
    layout_of,
    layout_verdict,
    merge_passes,
    numbered,
    renamed_to_nearest,
    split_name,
    with_unique_ids,
)
from dpt.claims.parse import parse_prompt
from dpt.errors import UserError
from dpt.evaluation.suites import lmd, pocket


def at(colour: str | None, shape: str, x: float, y: float, side: float = 0.3) -> PlacedObject:
    return PlacedObject("", Noun(colour, shape), box_at((x, y), side, side))


def layout(*objects: PlacedObject) -> Layout:
    return numbered(objects)


def kinds(current: Layout, goal: Layout) -> list[tuple[str, ...]]:
    return [edit.kinds for edit in changes(diff(current, goal))]


# Detections of two passes. "red dog" etc.; boxes that are far apart are different regions.
A, B, C = Box(0, 0, 10, 10), Box(20, 0, 30, 10), Box(40, 0, 50, 10)


def seen(label: str, box: Box, colour: str | None = None, confidence: float = 0.9) -> Detection:
    return Detection(label, box, confidence, colour)


@pytest.mark.parametrize(
    ("attributed", "bare", "objects"),
    [
        ([], [], []),
        ([], [seen("dog", A)], [("dog", None)]),
        ([seen("dog", A, "red")], [], [("dog", "red")]),
        ([seen("dog", A, "red")], [seen("dog", A)], [("dog", "red")]),
        ([seen("palm tree", A, "green")], [seen("palm tree", A)], [("palm tree", "green")]),  # two words
        ([], [seen("dog", A), seen("dog", B)], [("dog", None)] * 2),  # two attributes looked for, none seen
        ([seen("dog", A, "red")], [seen("dog", x) for x in (A, B, C)], [("dog", "red"), ("dog", None), ("dog", None)]),
        ([seen("dog", A, "red"), seen("dog", B, "red"), seen("dog", C, "red")], [], [("dog", "red")] * 3),  # surplus
        ([seen("dog", A, "red")], [seen("dog", B)], [("dog", "red"), ("dog", None)]),
        ([seen("dog", A, "red"), seen("dog", A, "blue", 0.5)], [], [("dog", "red")]),  # one region, two attributes
        ([seen("dog", A, "red", 0.5), seen("dog", A, "blue")], [seen("dog", A)], [("dog", "blue")]),
        ([seen("dog", A, "red"), seen("cat", A, "blue")], [], [("dog", "red"), ("cat", "blue")]),  # two nouns
        ([seen("dog", A, "red")], [seen("cat", A)], [("dog", "red"), ("cat", None)]),
        ([seen("dog", Box(0, 0, 10, 9), "red")], [seen("dog", A)], [("dog", "red")]),  # nearly the same box
        ([seen("dog", Box(0, 0, 10, 5), "red")], [seen("dog", A)], [("dog", "red"), ("dog", None)]),
    ],
)  # fmt: skip
def test_two_passes_give_each_region_once_and_keep_surplus(
    attributed: list[Detection], bare: list[Detection], objects: list[tuple[str, str | None]]
) -> None:
    merged = merge_passes(attributed, bare)
    assert [(d.label, d.colour) for d in merged] == objects
    assert len({id(d.box) for d in merged}) == len(merged) or len(objects) != len({d.box for d in merged})


def test_edits_by_kind() -> None:
    red, blue = at("red", "dog", 0.3, 0.3), at("blue", "dog", 0.3, 0.3)
    current = layout(red, at(None, "palm tree", 0.7, 0.7))
    dog, tree = current
    moved = PlacedObject(dog.id, dog.noun, box_at((0.6, 0.3), 0.3, 0.3))
    larger = PlacedObject(dog.id, dog.noun, box_at((0.3, 0.3), 0.5, 0.5))
    assert kinds(current, current) == []
    assert kinds(current, (moved, tree)) == [("move",)]
    assert kinds(current, (larger, tree)) == [("resize",)]
    assert kinds(current, (tree,)) == [("delete",)]
    assert kinds((tree,), current) == [("add",)]
    assert kinds(current, (*layout(blue), tree)) == [("attribute",)]  # from any attribute to any other
    green = PlacedObject("green palm tree #1", Noun("green", "palm tree"), tree.box)
    assert kinds(current, (dog, green)) == [("attribute",)]
    both = PlacedObject(dog.id, Noun("blue", "dog"), moved.box)
    assert kinds(current, (both, tree)) == [("attribute", "move")]
    far = PlacedObject("blue dog #1", Noun("blue", "dog"), box_at((0.8, 0.2), 0.3, 0.3))
    assert kinds(current, (far, tree)) == [("delete",), ("add",)]
    cat = PlacedObject("cat #1", Noun(None, "cat"), dog.box)
    assert kinds(current, (cat, tree)) == [("delete",), ("add",)]


def test_no_object_is_used_by_two_goals() -> None:
    (dog,) = layout(at(None, "dog", 0.5, 0.5))
    goals = tuple(PlacedObject(f"{c} dog #1", Noun(c, "dog"), dog.box) for c in ("red", "blue"))
    assert sorted(kinds((dog,), goals)) == [("add",), ("attribute",)]


def test_repeated_ids_are_renumbered_with_a_message() -> None:
    (dog,) = layout(at(None, "dog", 0.5, 0.5))
    with pytest.raises(ValueError, match="two objects dog #1"):
        diff((dog, dog), (dog,))
    unique, sentences = with_unique_ids((dog, dog, dog))
    assert [thing.id for thing in unique] == ["dog #1", "dog #2", "dog #3"]
    assert len(sentences) == 2


def test_a_kept_object_at_the_place_of_a_deleted_one_takes_its_id() -> None:
    first, second = layout(at(None, "cat", 0.2, 0.5), at(None, "cat", 0.8, 0.5))
    goal = (PlacedObject(first.id, first.noun, second.box),)
    assert kinds((first, second), goal) == [("move",), ("delete",)]
    assert kinds((first, second), renamed_to_nearest((first, second), goal)) == [("delete",)]


def random_layout(rng: random.Random, nouns: list[Noun]) -> Layout:
    objects = [(rng.choice(nouns), rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)) for _ in range(rng.randrange(6))]
    return numbered([PlacedObject("", noun, box_at((x, y), 0.33, 0.33)) for noun, x, y in objects])


def test_applying_the_difference_gives_the_goal() -> None:
    rng = random.Random(1)
    nouns = [Noun(colour, shape) for colour in ("red", "blue", None) for shape in ("dog", "cat")]
    for _ in range(300):
        current, goal = random_layout(rng, nouns), random_layout(rng, nouns)
        edits = diff(current, goal)
        assert sorted(apply_edits(edits), key=lambda t: t.id) == sorted(goal, key=lambda t: t.id)
        assert sum(edit.current is not None for edit in edits) == len(current)


def test_edits_are_described_in_words() -> None:
    current = layout(at("red", "circle", 0.7, 0.5), at("blue", "square", 0.3, 0.3))
    circle = current[0]
    goal = (
        PlacedObject(circle.id, circle.noun, box_at((0.3, 0.5), 0.3, 0.3)),
        PlacedObject("green star #1", Noun("green", "star"), box_at((0.8, 0.2), 0.2, 0.2)),
    )
    words = [edit.in_words for edit in changes(diff(current, goal))]
    assert words == ["move red circle #1 left", "delete blue square #1", "add a green star at the top right"]


@pytest.mark.parametrize(
    ("suite", "shapes"),
    [(lmd.suite().prompts[::3], lmd.CLASSES),
     (pocket.suite((*pocket.DEFAULT_CATEGORIES, "complex"), 15).prompts, ("circle", "square", "triangle", "cross"))],
)  # fmt: skip
def test_the_rule_controller_repairs_any_scene_in_one_round_and_then_changes_nothing(
    suite: tuple, shapes: tuple
) -> None:
    rng = random.Random(0)
    for prompt in suite:
        parsed = parse_prompt(prompt.text)
        others = [Noun(colour, shape) for colour in ("red", "green", "blue") for shape in shapes]
        own = [Noun(noun.colour or "red", noun.shape) for noun in parsed.objects]
        for _ in range(2):
            current = random_layout(rng, others + own * 4)
            goal = propose(parsed, current)
            assert judge(prompt, detections_of(goal, 64, 64)).passed, prompt.text
            assert propose(parsed, goal) == goal
            assert all(min(t.box.x0, t.box.y0) > -1e-6 and max(t.box.x1, t.box.y1) < 1 + 1e-6 for t in goal)


def test_a_right_scene_is_unchanged() -> None:
    scene = layout(at("red", "circle", 0.25, 0.4, 0.33), at("blue", "square", 0.75, 0.5, 0.33))
    assert propose(parse_prompt("a red circle to the left of a blue square"), scene) == scene


def test_only_what_violates_the_relation_moves() -> None:
    scene = layout(at("red", "circle", 0.8, 0.3, 0.33), at("blue", "square", 0.7, 0.75, 0.33))
    edits = changes(diff(scene, propose(parse_prompt("a red circle to the left of a blue square"), scene)))
    assert [(edit.kinds, edit.current.id) for edit in edits if edit.current] == [(("move",), "red circle #1")]


def test_detections_and_layouts_convert_both_ways() -> None:
    scene = layout(at("red", "circle", 0.3, 0.3), at("red", "circle", 0.7, 0.7))
    assert [thing.id for thing in scene] == ["red circle #1", "red circle #2"]
    again = layout_of(detections_of(scene, 100, 50), 100, 50)
    assert [thing.id for thing in again] == [thing.id for thing in scene]
    assert again[1].box.x0 == pytest.approx(scene[1].box.x0)


def test_boxes_outside_and_without_area_are_refused() -> None:
    assert check_box(Box(0.1, 0.1, 0.5, 0.5), "cat") == (Box(0.1, 0.1, 0.5, 0.5), None)
    clipped, sentence = check_box(Box(-0.2, 0.1, 0.5, 0.5), "cat")
    assert clipped.x0 == 0 and sentence is not None and "clipped" in sentence
    for box in (Box(0.5, 0.1, 0.5, 0.5), Box(2, 2, 3, 3), Box(0.5, 0.5, 0.1, 0.1), Box(float("nan"), 0, 1, 1)):
        with pytest.raises(UserError, match="cat"):
            check_box(box, "cat")


def test_published_names_split_at_the_longest_known_noun() -> None:
    assert split_name("green palm tree #2", {"tree", "palm tree"}) == (Noun("green", "palm tree"), "green palm tree #2")
    assert split_name("seagull #8", set())[0] == Noun(None, "seagull")


SCENE = layout(at("red", "circle", 0.3, 0.3), at("blue", "square", 0.7, 0.7), at("blue", "circle", 0.25, 0.75))


@pytest.mark.parametrize(
    ("instruction", "plan"),
    [
        ("remove the red circle", ["delete red circle #1"]),
        ("Delete all circles.", ["delete red circle #1", "delete blue circle #1"]),
        ("remove the leftmost circle", ["delete blue circle #1"]),
        ("add a green cross", ["add a green cross at the top right"]),
        ("move the red circle right", ["move red circle #1 right"]),
        ("move the square to the left slightly", ["move blue square #1 left"]),
        ("move the red circle to the bottom right corner", ["move red circle #1 down and right"]),
        ("swap the red circle and the square",
         ["move red circle #1 down and right", "move blue square #1 up and left"]),
        ("replace the square with a yellow star", ["delete blue square #1", "add a yellow star at the bottom right"]),
        ("make the square smaller", ["make blue square #1 smaller"]),
        ("make the red circle 1.5 times larger", ["make red circle #1 larger"]),
        ("turn the red circle violet", ["make red circle #1 a purple circle"]),
        ("paint the square green", ["make blue square #1 a green square"]),
    ],
)  # fmt: skip
def test_instructions_become_plans(instruction: str, plan: list[str]) -> None:
    goal = parse_instruction(instruction).apply(SCENE)
    assert [edit.in_words for edit in changes(diff(SCENE, goal))] == plan
    assert layout_verdict(goal, goal).passed
    assert not layout_verdict(goal, SCENE).passed


@pytest.mark.parametrize(
    ("instruction", "why"),
    [("sing", "the rules know"), ("remove the circle", "2 objects match"), ("remove the star", "sees no star"),
     ("make the square 9 times larger", "1 to 4 times"), ("turn the square mellow", "not a known colour"),
     ("add the unicorn", "with a known object"), ("move the sofa bed left", "known object")],
)  # fmt: skip
def test_other_instructions_are_refused_with_a_reason(instruction: str, why: str) -> None:
    with pytest.raises(UnsupportedInstruction, match=why):
        parse_instruction(instruction).apply(SCENE)
