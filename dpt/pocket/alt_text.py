"""Captions like web alt-text, with facts left out or wrong at given rates; and captions parsed into labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from dpt.claims.facts import RELATIONS, Noun
from dpt.claims.words import (
    ANYTHING,
    COLOUR_WORDS,
    NUMBERS,
    OPPOSITE,
    SCENE_WORDS,
    SHAPE_WORDS,
    VAGUE,
    Description,
    Group,
    caption_text,
    scene_plural,
)
from dpt.data.scenes.captions import describe_scene, drop_facts, false_description
from dpt.data.scenes.world import Scene, World, draw_kinds
from dpt.keyed_random import KeyedRandom

TRIES = 6


@dataclass(frozen=True)
class AltTextConfig:
    """How often captions leave facts out, and how often they are wrong."""

    noise: float = 0.0
    """Scales how many facts `drop_facts` leaves out."""
    omission: float = 0.08
    """Probability, at noise 1, that one kind of object is left out."""
    relation: float = 0.6
    """Probability that a relation is stated where two single objects allow it."""
    flipped_relation: float = 0.0
    """Fraction of stated relations that are reversed."""
    wrong_colour: float = 0.0
    """Fraction of captions of several nouns with a wrong colour, swapped with another noun's where possible."""
    wrong_count: float = 0.0
    """Fraction of captions in which one number is off by one."""
    uninformative: float = 0.0
    """Fraction of captions that describe no object."""


def alt_text(scene: Scene, world: World, rng: KeyedRandom, config: AltTextConfig) -> str:
    """A caption of the scene with facts left out or wrong as `config` says."""
    if rng.chance(config.uninformative):
        return rng.choice(SCENE_WORDS)
    description = _describe(scene, world, rng, config.relation)
    errors = (
        ("relation", config.flipped_relation if description.relation else 0.0),
        ("colour", config.wrong_colour if len(description.groups) > 1 else 0.0),
        ("count", config.wrong_count),
    )
    for kind, rate in errors:
        if rng.chance(rate):
            description = false_description(description, scene, kind, world, rng) or description
    if config.noise:
        description = drop_facts(description, rng, config.noise, config.omission)
    return caption_text(description, rng)


def _describe(scene: Scene, world: World, rng: KeyedRandom, relation: float) -> Description:
    """A true description that states a relation with about that probability."""
    with_relation = rng.chance(relation)
    description = describe_scene(scene, world, rng)
    for _ in range(TRIES):
        if bool(description.relation) == with_relation or len(scene.objects) == 1:
            break
        description = describe_scene(scene, world, rng)
    return description


COUNT_CLASSES = 6
"""None to four, and the last for "some"."""

NOISY_FRACTION = 0.35

NOISE = 0.5

RELATION_FRACTION = 0.7

ABSENT_FRACTION = 0.3

SORTS = (("single", 0.15), ("pair", 0.5), ("group", 0.15), ("mixed", 0.2))


def random_caption(world: World, rng: KeyedRandom) -> str:
    """A caption of the world's grammar, without a scene. It states no held-out kind or relation."""
    counts = Counter(draw_kinds(rng, rng.weighted_choice(SORTS), world))
    groups = tuple(Group(Noun(*kind), counts[kind]) for kind in rng.sample(list(counts), len(counts)))
    description = Description(groups)
    singles = [group for group in groups if group.n == 1]
    if len(singles) >= 2 and rng.chance(RELATION_FRACTION):
        first, second = singles[:2]
        others = tuple(group for group in groups if group not in (first, second)) if rng.chance(0.5) else ()
        held_out = world.held_out_relations
        possible = [r for r in RELATIONS if (first.noun.shape, r, second.noun.shape) not in held_out]
        description = Description((first, second, *others), rng.choice(possible))
    elif rng.chance(ABSENT_FRACTION):
        shapes = [shape for shape in world.shapes if all(group.noun.shape != shape for group in groups)]
        kinds = [kind for kind in world.kinds if kind not in counts]
        absent = Noun(*rng.choice(kinds)) if rng.chance(0.3) or not shapes else Noun(shape=rng.choice(shapes))
        description = replace(description, absent=absent)
    if rng.chance(NOISY_FRACTION):
        description = drop_facts(description, rng, NOISE)
    return caption_text(description, rng)


@dataclass(frozen=True)
class NounPhrase:
    n: int
    noun: Noun
    head: int
    """Index of the word that names the shape."""


@dataclass(frozen=True)
class ParsedCaption:
    phrases: tuple[NounPhrase, ...] = ()
    relation: str | None = None
    absent: Noun | None = None

    def on_side(self, side: str) -> Noun | None:
        """The noun that the relation puts on that side."""
        if self.relation is None or len(self.phrases) < 2:
            return None
        if side == self.relation:
            return self.phrases[0].noun
        return self.phrases[1].noun if side == OPPOSITE[self.relation] else None


_COLOUR_OF = {word: colour for colour, words in COLOUR_WORDS.items() for word in words}
_SHAPE_OF: dict[str, str | None] = {
    form: shape for shape, words in SHAPE_WORDS.items() for word in words for form in (word, scene_plural(word))
}
_SHAPE_OF.update((form, None) for word in ANYTHING for form in (word, scene_plural(word)))
_NUMBER_OF = {"a": 1, "an": 1, **{word: n for n, word in enumerate(NUMBERS)}, **dict.fromkeys(VAGUE, COUNT_CLASSES - 1)}
_RELATION_OF = {**{r: r for r in RELATIONS}, "over": "above", "under": "below"}
_SCENERY = {"colourful", "simple", "plain", "picture", "image", "drawing", "background"}


def parse_words(text: str) -> ParsedCaption:
    """The nouns, relation and absence in a caption in any wording, noisy ones too."""
    phrases: list[NounPhrase] = []
    relation: str | None = None
    absent: Noun | None = None
    n: int | None = None
    colour: str | None = None
    negated = False
    for at, word in enumerate(text.split()):
        if word in _SCENERY:
            n = None  # "a picture": the number belongs to no object
        elif word in _COLOUR_OF:
            colour = _COLOUR_OF[word]
        elif word in _NUMBER_OF:
            n = _NUMBER_OF[word]
        elif word == "without":
            negated = True
        elif word in _RELATION_OF and phrases:
            relation = _RELATION_OF[word]
        elif word in _SHAPE_OF:
            if negated:
                absent = Noun(colour, _SHAPE_OF[word])
            elif n is not None:
                phrases.append(NounPhrase(n, Noun(colour, _SHAPE_OF[word]), at))
            n, colour, negated = None, None, False
    return ParsedCaption(tuple(phrases), relation, absent)


class CaptionLabels:
    """Class labels of parsed captions. An attribute has two more classes: unspecified, and no such noun."""

    def __init__(self, world: World) -> None:
        self.colours, self.shapes = world.colours, world.shapes
        self.num_colours, self.num_shapes = len(world.colours) + 2, len(world.shapes) + 2
        self.nouns = [Noun(c, s) for c in (*world.colours, None) for s in (*world.shapes, None)]
        attributes = [self.num_colours, self.num_shapes]
        self.phrase_sizes = [COUNT_CLASSES, *attributes]
        self.caption_sizes = [
            len(RELATIONS) + 1,
            *attributes * len(RELATIONS),
            *attributes,
            *[COUNT_CLASSES] * len(self.nouns),
        ]
        self.groups = [
            "relation",
            *("role colour", "role shape") * len(RELATIONS),
            "absent",
            "absent",
            *["count"] * len(self.nouns),
        ]
        """What each label of a caption is about."""

    def noun(self, noun: Noun | None) -> list[int]:
        if noun is None:
            return [self.num_colours - 1, self.num_shapes - 1]
        colour = self.num_colours - 2 if noun.colour is None else self.colours.index(noun.colour)
        shape = self.num_shapes - 2 if noun.shape is None else self.shapes.index(noun.shape)
        return [colour, shape]

    def caption(self, parsed: ParsedCaption) -> list[int]:
        relation = RELATIONS.index(parsed.relation) if parsed.relation else len(RELATIONS)
        roles = [label for side in RELATIONS for label in self.noun(parsed.on_side(side))]
        counts = dict.fromkeys(self.nouns, 0)
        for phrase in parsed.phrases:
            counts[phrase.noun] = min(counts[phrase.noun] + phrase.n, COUNT_CLASSES - 1)
        return [relation, *roles, *self.noun(parsed.absent), *counts.values()]
