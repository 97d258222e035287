from __future__ import annotations

import pytest

from dpt.claims.facts import Absent, Box, Count, Noun, Related, all_hold
from dpt.data.scenes.world import SceneObject

RED_CIRCLE = SceneObject("circle", "red", "small", Box(2, 2, 16, 16))
BLUE_SQUARE = SceneObject("square", "blue", "large", Box(40, 4, 60, 24))
THINGS = (RED_CIRCLE, BLUE_SQUARE, SceneObject("circle", "blue", "large", Box(38, 38, 60, 60)))


@pytest.mark.parametrize(
    ("noun", "n"),
    [
        (Noun(), 3),
        (Noun("blue"), 2),
        (Noun(shape="circle"), 2),
        (Noun("blue", "circle"), 1),
        (Noun(size="small"), 1),
    ],
)
def test_counts_are_exact_or_at_least(noun: Noun, n: int) -> None:
    assert Count(noun, n).holds(THINGS)
    assert not Count(noun, n + 1).holds(THINGS)
    assert not Count(noun, n - 1).holds(THINGS)
    assert Count(noun, n - 1, exact=False).holds(THINGS)
    assert not Count(noun, n + 1, exact=False).holds(THINGS)


def test_relations_need_their_margin() -> None:
    left = Related(Noun("red"), "left", Noun("blue", "square"))
    assert left.holds(THINGS)
    assert not Related(Noun("red"), "right", Noun("blue")).holds(THINGS)
    # The square's centre is 5 pixels lower than the circle's, less than the margin.
    assert not Related(Noun("red"), "above", Noun("blue", "square")).holds(THINGS)
    assert Related(Noun("red"), "above", Noun("blue", "square"), margin=4).holds(THINGS)


def test_object_is_not_related_to_itself() -> None:
    assert not Related(Noun("red"), "left", Noun("red"), margin=-1).holds(THINGS)


def test_absent_facts() -> None:
    assert Absent(Noun("red", "square")).holds(THINGS)
    assert not Absent(Noun("red")).holds(THINGS)
    assert all_hold((), THINGS)
    assert not all_hold((Absent(Noun("green")), Absent(Noun("red"))), THINGS)


def test_general_noun_covers_the_specific() -> None:
    assert Noun(shape="circle").covers(Noun("red", "circle"))
    assert Noun().covers(Noun("red"))
    assert not Noun("red", "circle").covers(Noun(shape="circle"))
    assert not Noun(shape="circle").covers(Noun("red", "square"))
