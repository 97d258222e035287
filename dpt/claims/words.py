"""The vocabulary of captions, captions for detections, and descriptions of a scene as facts and as a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from dpt.claims.facts import Absent, Count, Fact, Noun, Prompt, Related
from dpt.keyed_random import KeyedRandom

RGB = tuple[int, int, int]


SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "star", "ring")


COLOURS: dict[str, RGB] = {
    "red": (214, 40, 48),
    "orange": (247, 138, 20),
    "yellow": (250, 216, 34),
    "green": (38, 150, 62),
    "cyan": (44, 196, 214),
    "blue": (40, 72, 204),
    "purple": (136, 52, 178),
    "pink": (246, 132, 182),
}


SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus"),
    "star": ("star",),
    "ring": ("ring", "hoop"),
}

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    colour: (colour, *{"purple": ("violet",), "cyan": ("turquoise",)}.get(colour, ())) for colour in COLOURS
}

SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little"), "large": ("large", "big")}

RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

EXTREMES = {"left": "leftmost", "right": "rightmost", "above": "topmost", "below": "lowest"}

NUMBERS = ("no", "one", "two", "three", "four", "five")

ANYTHING = ("shape", "object")

VAGUE = ("some", "several")

PLURALS = {"box": "boxes", "cross": "crosses", "plus": "pluses"}

OPENINGS = ("", "", "", "a picture of", "an image of", "a drawing of")

PHOTO_OPENINGS = ("a photo of", "a picture of", "an image of", "a drawing of", "a realistic photo of")

LMD_OPENING = "A realistic photo of a scene"
"""How the prompts of LLM-grounded Diffusion begin, before "with" or "without"."""

SCENE_WORDS = ("colourful shapes", "a simple drawing", "shapes on a plain background", "a picture")

BACKGROUND_ENDING = "on a plain background"

SYNONYM_CHANCE = 0.12


def scene_plural(word: str) -> str:
    return PLURALS.get(word, word + "s")


def scene_article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def choose_word(words: tuple[str, ...], rng: KeyedRandom | None) -> str:
    """The first word, or a synonym with probability SYNONYM_CHANCE; without rng, the first."""
    if rng is not None and len(words) > 1 and rng.chance(SYNONYM_CHANCE):
        return words[1 + rng.randrange(len(words) - 1)]
    return words[0]


def noun_words(noun: Noun, rng: KeyedRandom | None = None, many: bool = False) -> list[str]:
    """Size, colour, shape; the head noun is last."""
    words = []
    if noun.size:
        words.append(choose_word(SIZE_WORDS[noun.size], rng))
    if noun.colour:
        words.append(choose_word(COLOUR_WORDS[noun.colour], rng))
    head = choose_word(SHAPE_WORDS[noun.shape] if noun.shape else ANYTHING, rng)
    return [*words, scene_plural(head) if many else head]


def vocabulary() -> list[str]:
    """Every word that the grammar can produce, sorted."""
    heads = [word for words in SHAPE_WORDS.values() for word in words] + list(ANYTHING)
    phrases: list[str] = [*heads, *(scene_plural(head) for head in heads), *NUMBERS, *VAGUE, *EXTREMES.values()]
    for table in (COLOUR_WORDS, SIZE_WORDS, RELATION_WORDS):
        phrases += [word for words in table.values() for word in words]
    phrases += [*OPENINGS, *SCENE_WORDS, BACKGROUND_ENDING, "a an and the without with any"]
    assert set(SHAPE_WORDS) == set(SHAPES)
    return sorted({word for phrase in phrases for word in phrase.split()})


def unknown_words(prompt: str, known: Iterable[str] | None = None) -> list[str]:
    """The words of a prompt that the grammar cannot produce, or that are not among those given, each once."""
    known = set(vocabulary() if known is None else known)
    return [word for word in dict.fromkeys(re.findall(r"[^\W_]+", prompt)) if word.lower() not in known]


VOWELS = "aeiou"

HISSING = ("s", "x", "z", "ch", "sh")


def article(words: str) -> str:
    """By the first letter, as the public suites do: "an umbrella", but also "a skis"."""
    return "an" if words[:1].lower() in tuple(VOWELS) else "a"


def with_article(words: str) -> str:
    return f"{article(words)} {words}"


def plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith(HISSING) else f"{noun}s"


_COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)

COCO_NOUNS = tuple(_COCO_NAMES.split(","))
"""The 80 classes of COCO, in its order; the public suites use them."""

IRREGULAR_PLURALS = {
    "person": "people",
    "sheep": "sheep",
    "mouse": "mice",
    "knife": "knives",
    "skis": "skis",
    "scissors": "scissors",
    "broccoli": "broccoli",
}


NUMBER_WORDS = (*NUMBERS, "six", "seven", "eight", "nine", "ten")

PLACES = {"left": ("left", "right"), "right": ("right", "left"), "above": ("top", "bottom"), "below": ("bottom", "top")}


@dataclass(frozen=True)
class Phrase:
    """A noun and how many of it."""

    noun: Noun
    n: int


def count_limit(prompt: Prompt) -> int:
    """The largest number that a caption of this kind puts into words; rendered scenes have no word beyond five."""
    return len(NUMBERS) - 1 if prompt.closed else len(NUMBER_WORDS) - 1


def detected_caption(
    prompt: Prompt,
    phrases: Sequence[Phrase],
    relation: str | None,
    absent: Sequence[Noun],
    *,
    digits: bool,
    digits_for_one: bool,
    an: bool,
) -> str:
    """A caption that opens as the prompt does; `relation` holds between the first two phrases.

    `digits`: "2 dog" instead of "two dogs"; `digits_for_one`: and "1 dog" instead of "a dog". `an`: "an apple" instead
    of "a apple".
    """
    parts = [_counted(phrase, digits, digits_for_one, an) for phrase in phrases]
    if relation is not None:
        parts = [_related(prompt.text, parts[0], relation, parts[1]), *parts[2:]]
    text = " and ".join(parts)
    if absent:
        lacking = " and ".join(_words(noun, many=True) for noun in absent)
        text = f"{text} without {lacking}".strip()
    return _opened(prompt.text, text)


def _counted(phrase: Phrase, digits: bool, digits_for_one: bool, an: bool) -> str:
    words = _words(phrase.noun, many=False)
    if digits and (phrase.n != 1 or digits_for_one):
        return f"{phrase.n} {words}"
    if phrase.n == 1:
        return f"{article(words) if an else 'a'} {words}"
    return f"{NUMBER_WORDS[phrase.n]} {_words(phrase.noun, many=True)}"


def _words(noun: Noun, many: bool) -> str:
    head = noun.shape or ANYTHING[0]
    if many:
        head = IRREGULAR_PLURALS.get(head) or plural(head)
    return " ".join(word for word in (noun.size, noun.colour, head) if word)


def _related(original: str, first: str, relation: str, second: str) -> str:
    if any(f" on the {place}" in original for place in PLACES["left"] + PLACES["above"]):
        here, there = PLACES[relation]
        return f"{first} on the {here} and {second} on the {there}"
    long, short = RELATION_WORDS[relation][:2]
    as_geneval = any(f" {side} of " in original and f" to the {side} of " not in original for side in ("left", "right"))
    return f"{first} {short if as_geneval and relation in ('left', 'right') else long} {second}"


def _opened(original: str, text: str) -> str:
    if original.startswith(LMD_OPENING):
        return f"{LMD_OPENING} {text}" if text.startswith("without ") else f"{LMD_OPENING} with {text}"
    opening = next((o for o in PHOTO_OPENINGS if original.lower().startswith(f"{o} ")), "")
    return f"{opening} {text}".strip()


@dataclass(frozen=True)
class Group:
    noun: Noun
    n: int
    vague: bool = False
    """Worded without a number: "some circles"."""


@dataclass(frozen=True)
class Description:
    groups: tuple[Group, ...]
    relation: str | None = None
    """Relation of the first group to the second, each of one thing."""
    absent: Noun | None = None
    exact: bool = True
    """Whether "a circle" means exactly one; in vague captions it means at least one."""

    @property
    def facts(self) -> tuple[Fact, ...]:
        facts: list[Fact] = [
            Count(g.noun, 2 if g.vague else g.n, exact=self.exact and not g.vague) for g in self.groups
        ]
        if self.relation:
            facts.append(Related(self.groups[0].noun, self.relation, self.groups[1].noun))
        if self.absent:
            facts.append(Absent(self.absent))
        return tuple(facts)


@dataclass(frozen=True)
class Caption:
    text: str
    facts: tuple[Fact, ...]


def caption_text(description: Description, rng: KeyedRandom | None = None) -> str:
    """The description as a sentence; without rng, in its plainest wording."""
    parts = [_group_words(group, rng) for group in description.groups]
    if description.relation:
        relation = choose_word(RELATION_WORDS[description.relation], rng)
        parts = [f"{parts[0]} {relation} {parts[1]}", *parts[2:]]
    if description.absent:
        absent = " ".join(noun_words(description.absent, rng, many=True))
        parts[-1] += f" without {'any ' if rng and rng.chance(0.3) else ''}{absent}"
    text = " and ".join(parts)
    if rng is None:
        return text
    opening = rng.choice(OPENINGS)
    if rng.chance(0.1):
        text += f" {BACKGROUND_ENDING}"
    return f"{opening} {text}".strip()


def _group_words(group: Group, rng: KeyedRandom | None) -> str:
    many = group.n > 1
    words = noun_words(group.noun, rng, many)
    if group.vague:
        return " ".join([rng.choice(VAGUE) if rng else VAGUE[0], *words])
    if many:
        return " ".join([NUMBERS[group.n], *words])
    if rng and rng.chance(0.1):
        return " ".join(["one", *words])
    return " ".join([scene_article(words[0]), *words])


class Vocabulary(Protocol):
    """The words that a closed world knows."""

    @property
    def shapes(self) -> Sequence[str]: ...
    @property
    def colours(self) -> Sequence[str]: ...
    @property
    def sizes(self) -> Sequence[str]: ...


def parse_caption(text: str, world: Vocabulary) -> Description | None:
    """The description that `caption_text` puts into exactly this sentence; None for any other sentence."""
    sentence = " ".join(text.lower().rstrip(". ").split())
    positive, without, absent = sentence.partition(" without ")
    first, relation, rest = _split_at_relation(positive)
    parts = [*([first] if relation else []), *(rest if relation else positive).split(" and ")]
    groups = [_parse_group(part, world) for part in parts]
    lacking = _parse_noun(absent, world, many=True) if without else None
    if None in groups or (without and lacking is None):
        return None
    description = Description(tuple(group for group in groups if group), relation, lacking)
    return description if caption_text(description) == sentence else None


def _split_at_relation(text: str) -> tuple[str, str | None, str]:
    for relation, (words, *_) in RELATION_WORDS.items():
        first, separator, rest = text.partition(f" {words} ")
        if separator:
            return first, relation, rest
    return "", None, text


def _parse_group(text: str, world: Vocabulary) -> Group | None:
    number, _, rest = text.partition(" ")
    n = 1 if number in ("a", "an") else NUMBERS.index(number) if number in NUMBERS[2:] else 0
    noun = _parse_noun(rest, world, many=n > 1)
    return Group(noun, n) if n and noun else None


def _parse_noun(text: str, world: Vocabulary, many: bool) -> Noun | None:
    *before, head = text.split() or [""]
    shape = next((shape for shape in world.shapes if head == (scene_plural(shape) if many else shape)), None)
    for size, colour in product((None, *world.sizes), (None, *world.colours)):
        if shape and before == [word for word in (size, colour) if word]:
            return Noun(colour, shape, size)
    return None
