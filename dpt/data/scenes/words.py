"""The words of the scene grammar, and how a noun, a number or a relation is put."""

from __future__ import annotations

from dpt.data.scenes.draws import Draws
from dpt.data.scenes.facts import Noun
from dpt.data.scenes.world import COLOURS, SHAPES

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
SCENE_WORDS = ("colourful shapes", "a simple drawing", "shapes on a plain background", "a picture")
BACKGROUND_ENDING = "on a plain background"
SYNONYM_CHANCE = 0.12


def plural(word: str) -> str:
    return PLURALS.get(word, word + "s")


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def choose_word(words: tuple[str, ...], draws: Draws | None) -> str:
    """The first word, or now and then a synonym; without draws always the first."""
    if draws is not None and len(words) > 1 and draws.chance(SYNONYM_CHANCE):
        return words[1 + draws.below(len(words) - 1)]
    return words[0]


def noun_words(noun: Noun, draws: Draws | None = None, many: bool = False) -> list[str]:
    """Size, colour, shape; the head comes last."""
    words = []
    if noun.size:
        words.append(choose_word(SIZE_WORDS[noun.size], draws))
    if noun.colour:
        words.append(choose_word(COLOUR_WORDS[noun.colour], draws))
    head = choose_word(SHAPE_WORDS[noun.shape] if noun.shape else ANYTHING, draws)
    return [*words, plural(head) if many else head]


def vocabulary() -> list[str]:
    """Every word the grammar can say, sorted."""
    heads = [word for words in SHAPE_WORDS.values() for word in words] + list(ANYTHING)
    phrases: list[str] = [*heads, *(plural(head) for head in heads), *NUMBERS, *VAGUE, *EXTREMES.values()]
    for table in (COLOUR_WORDS, SIZE_WORDS, RELATION_WORDS):
        phrases += [word for words in table.values() for word in words]
    phrases += [*OPENINGS, *SCENE_WORDS, BACKGROUND_ENDING, "a an and the without with any"]
    assert set(SHAPE_WORDS) == set(SHAPES)
    return sorted({word for phrase in phrases for word in phrase.split()})
