"""The four tasks of LLM-grounded Diffusion (arXiv 2305.13655), rebuilt by rule: 400 prompts, 250 of them different.

Queries are "image of a car" (for attribution with the colour: "image of a red car"); scores count from 0.20, for
attribution from 0.45; NMS is at an IoU of 0.15. Negation: no box. Numeracy: exactly n. Attribution: at least one box of
each coloured noun. Spatial: the best box of the first noun has its centre strictly beyond that of the second's. One box
may count for both nouns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from dpt.claims.facts import Absent, Claim, Count, Noun, Prompt, RelationByCentres
from dpt.claims.judge import DetectConfig
from dpt.claims.words import LMD_OPENING, plural, with_article
from dpt.evaluation.suites.base import Suite

CLASSES = ("backpack", "book", "bottle", "bowl", "car", "cat", "chair", "cup", "dog", "laptop")

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")

NUMBERS = ("one", "two", "three", "four", "five")

PLACES = (("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top"))

RELATIONS = {"left": "left", "right": "right", "top": "above", "bottom": "below"}


DETECT = DetectConfig("image of {a} {noun}", 0.20, thresholds=(("attribution", 0.45),), nms=0.15)


@lru_cache(maxsize=1)
def two_objects() -> Suite:
    """Two counted objects, a task that the published code recognises and the published list lacks."""
    return _two_objects("lmd-two", published=False)


@lru_cache(maxsize=1)
def two_objects_published() -> Suite:
    """As `two_objects`, judged as the published code does: it reads the first number and noun twice."""
    return _two_objects("lmd-two-published", published=True)


def two_object_claims(first: tuple[Noun, int], second: tuple[Noun, int], published: bool) -> tuple[Claim, ...]:
    """Both counts; with the published rule the second is not checked."""
    return (Count(*first),) if published else (Count(*first), Count(*second))


def _two_objects(name: str, published: bool) -> Suite:
    prompts = []
    for i in range(100):
        rng = _random_state(i)
        names, counts = _two(rng, CLASSES), [int(n) for n in rng.randint(1, len(NUMBERS) + 1, 2)]
        text = " and ".join(
            f"{NUMBERS[n - 1]} {name if n == 1 else plural(name)}" for name, n in zip(names, counts, strict=True)
        )
        pairs = [(Noun(shape=name), n) for name, n in zip(names, counts, strict=True)]
        facts = two_object_claims(pairs[0], pairs[1], published)
        prompts.append(Prompt(f"{name}-{i:03d}", "numeracy", f"{LMD_OPENING} with {text}", facts, closed=False))
    return Suite(name, f"{name}-1", tuple(prompts), DETECT, detector="owlv2")


TWO_OBJECTS: Mapping[str, Callable[[], Suite]] = {"lmd-two": two_objects, "lmd-two-published": two_objects_published}


@lru_cache(maxsize=1)
def suite() -> Suite:
    entries = [*_negation(), *_numeracy(), *_attribution(), *_spatial()]
    prompts = (
        Prompt(f"lmd-{number:03d}", category, f"{LMD_OPENING} {text}", facts, closed=False)
        for number, (category, text, facts) in enumerate(entries)
    )
    return Suite("lmd", "lmd-1", tuple(prompts), DETECT, detector="owlv2")


Entry = tuple[str, str, tuple[Claim, ...]]


def _negation() -> list[Entry]:
    return [("negation", f"without {plural(name)}", (Absent(Noun(shape=name)),)) for name in CLASSES for _ in range(10)]


def _numeracy() -> list[Entry]:
    return [
        ("numeracy", f"with {word} {name if n == 1 else plural(name)}", (Count(Noun(shape=name), n),))
        for n, word in enumerate(NUMBERS, start=1)
        for name in CLASSES
        for _ in range(2)
    ]


def _attribution() -> list[Entry]:
    return [_coloured_pair(i) for i in range(100)]


def _coloured_pair(i: int) -> Entry:
    rng = _random_state(i)
    colours, names = _two(rng, COLOURS), _two(rng, CLASSES)
    nouns = [Noun(colour, name) for colour, name in zip(colours, names, strict=True)]
    text = " and ".join(with_article(f"{noun.colour} {noun.shape}") for noun in nouns)
    return "attribution", f"with {text}", tuple(Count(noun, 1, exact=False) for noun in nouns)


def _spatial() -> list[Entry]:
    entries: list[Entry] = []
    for i in range(25):
        rng = _random_state(i)
        for places in PLACES:
            names = _two(rng, CLASSES)
            first, second = (Noun(shape=name) for name in names)
            text = " and ".join(
                f"{with_article(name)} on the {place}" for name, place in zip(names, places, strict=True)
            )
            side = RelationByCentres(first, RELATIONS[places[0]], second, best_only=True)
            both = Count(first, 1, exact=False), Count(second, 1, exact=False)
            entries.append(("spatial", f"with {text}", (*both, side)))
    return entries


def _random_state(i: int) -> np.random.RandomState:
    # The published list was made with numpy's legacy generator.
    return np.random.RandomState(i)


def _two(rng: np.random.RandomState, names: Sequence[str]) -> list[str]:
    return [str(name) for name in rng.choice(names, 2, replace=False)]
