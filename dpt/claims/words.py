"""The vocabulary of captions: shapes, colours, numbers, relations, plurals and articles."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dpt.claims.facts import Noun
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
