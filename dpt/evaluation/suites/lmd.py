"""The four tasks of LLM-grounded Diffusion (arXiv 2305.13655), rebuilt by rule: 400 prompts, 250 of them different.

A detector that must be told is asked for "image of a car" (with its colour for attribution: "image of a red car"); a
score counts from 0.20, for attribution from 0.45; boxes of one noun that share more than 0.15 of their union are one.
Negation: no box. Numeracy: exactly n. Attribution: at least one box of each coloured noun, more do no harm. Spatial: of
each noun the best-scoring box, the one's centre strictly beyond the other's. A box found for two nouns counts for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from dpt.claims.detections import DetectConfig
from dpt.claims.facts import Absent, Claim, Count, Noun, RelationByCentres
from dpt.claims.prompt import Prompt
from dpt.claims.words import plural, with_article
from dpt.evaluation.suites.base import Suite

PREFIX = "A realistic photo of a scene"

CLASSES = ("backpack", "book", "bottle", "bowl", "car", "cat", "chair", "cup", "dog", "laptop")

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")

NUMBERS = ("one", "two", "three", "four", "five")

PLACES = (("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top"))

RELATIONS = {"left": "left", "right": "right", "top": "above", "bottom": "below"}


DETECT = DetectConfig("image of {a} {noun}", 0.20, thresholds=(("attribution", 0.45),), nms=0.15)


@lru_cache(maxsize=1)
def suite() -> Suite:
    told = [*_negation(), *_numeracy(), *_attribution(), *_spatial()]
    prompts = (
        Prompt(f"lmd-{number:03d}", category, f"{PREFIX} {text}", facts, closed=False)
        for number, (category, text, facts) in enumerate(told)
    )
    return Suite("lmd", "lmd-1", tuple(prompts), DETECT, detector="owlv2")


Told = tuple[str, str, tuple[Claim, ...]]


def _negation() -> list[Told]:
    return [("negation", f"without {plural(name)}", (Absent(Noun(shape=name)),)) for name in CLASSES for _ in range(10)]


def _numeracy() -> list[Told]:
    return [
        ("numeracy", f"with {word} {name if n == 1 else plural(name)}", (Count(Noun(shape=name), n),))
        for n, word in enumerate(NUMBERS, start=1)
        for name in CLASSES
        for _ in range(2)
    ]


def _attribution() -> list[Told]:
    return [_coloured_pair(i) for i in range(100)]


def _coloured_pair(i: int) -> Told:
    chance = _chance(i)
    colours, names = _two(chance, COLOURS), _two(chance, CLASSES)
    nouns = [Noun(colour, name) for colour, name in zip(colours, names, strict=True)]
    said = " and ".join(with_article(f"{noun.colour} {noun.shape}") for noun in nouns)
    return "attribution", f"with {said}", tuple(Count(noun, 1, exact=False) for noun in nouns)


def _spatial() -> list[Told]:
    told: list[Told] = []
    for i in range(25):
        chance = _chance(i)
        for places in PLACES:
            names = _two(chance, CLASSES)
            here, there = (Noun(shape=name) for name in names)
            said = " and ".join(
                f"{with_article(name)} on the {place}" for name, place in zip(names, places, strict=True)
            )
            side = RelationByCentres(here, RELATIONS[places[0]], there, best_only=True)
            both = Count(here, 1, exact=False), Count(there, 1, exact=False)
            told.append(("spatial", f"with {said}", (*both, side)))
    return told


def _chance(i: int) -> np.random.RandomState:
    # The published list was drawn from numpy's older generator: another would draw another list.
    return np.random.RandomState(i)


def _two(chance: np.random.RandomState, names: Sequence[str]) -> list[str]:
    return [str(name) for name in chance.choice(names, 2, replace=False)]
