from __future__ import annotations

from dpt.claims.facts import Noun
from dpt.claims.words import noun_words, scene_article, scene_plural, vocabulary
from dpt.keyed_random import KeyedRandom

FROZEN = """
a above an and any background below big blue box boxes circle circles colourful cross crosses cyan
disc discs drawing five four green hoop hoops image large left leftmost little lowest no object
objects of on one orange over picture pink plain plus pluses purple red right rightmost ring rings
several shape shapes simple small some square squares star stars the three to topmost triangle
triangles turquoise two under violet with without yellow
"""


def test_plurals_and_articles() -> None:
    assert [scene_plural(word) for word in ("circle", "box", "cross", "plus", "ring")] == [
        "circles", "boxes", "crosses", "pluses", "rings",
    ]  # fmt: skip
    assert [scene_article(word) for word in ("orange", "red", "object", "square")] == ["an", "a", "an", "a"]


def test_head_noun_comes_last() -> None:
    assert noun_words(Noun("red", "circle", "small")) == ["small", "red", "circle"]
    assert noun_words(Noun("red"), many=True) == ["red", "shapes"]
    assert noun_words(Noun("red", "circle"), KeyedRandom(3)) in (["red", "circle"], ["red", "disc"])


def test_vocabulary_is_frozen() -> None:
    """The tokenizer of the embedded model has these words; the shipped weights do not know others."""
    assert vocabulary() == FROZEN.split()
