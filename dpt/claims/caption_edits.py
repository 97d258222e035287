"""False captions: of any wording by rules on words, and of a parsed prompt with one fact changed; no parser.

The known nouns are COCO's classes and the shapes of rendered scenes; a caller may add its own. A rule that could leave
a caption true (colours exchanged between two cars, nouns exchanged around "and") is not applied. Only what the caption
leaves out can make an edit true by chance: a second, blue car where "a red car" became "a blue car".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from dpt.claims.facts import RELATIONS, Absent, Count, Noun, Prompt, Related, RelationByCentres, RelationOfBest
from dpt.claims.parse import MOST_OBJECTS, Heads, colour_named, photo_heads, scene_heads
from dpt.claims.relabel import Reason
from dpt.claims.words import (
    COLOUR_WORDS,
    IRREGULAR_PLURALS,
    NUMBER_WORDS,
    OPPOSITE,
    RELATION_WORDS,
    SIZE_WORDS,
    Phrase,
    article,
    detected_caption,
    plural,
    scene_plural,
)
from dpt.keyed_random import KeyedRandom

EDITS_PER_KIND = 2

OPPOSITES = {
    words: RELATION_WORDS[OPPOSITE[relation]][place]
    for relation, wordings in RELATION_WORDS.items()
    for place, words in enumerate(wordings)
}

MORE_OPPOSITES = {
    "in front of": "behind", "on top of": "underneath", "inside": "outside", "on the left": "on the right",
    "on the right": "on the left", "at the top": "at the bottom", "at the bottom": "at the top",
    "in the foreground": "in the background", "in the background": "in the foreground",
}  # fmt: skip

ONE_WAY = {"behind": "in front of", "beneath": "on top of", "underneath": "on top of", "outside": "inside"}

REVERSALS = {**MORE_OPPOSITES, **ONE_WAY, **OPPOSITES}
"""Each wording of a relation, and one that contradicts it."""

JOINING = frozenset({"and", "or", "with", "a", "an", "the", "of"})

ENDS_A_PHRASE = (
    "and", "or", "with", "of", "in", "on", "at", "by", "to", "is", "are", "was", "were", "from", "for", "near", "next",
    "under", "over", "above", "below", "behind", "beside", "between", "inside", "into", "onto", "that", "which",
)  # fmt: skip
"""Words that no noun begins with: a colour before one of them is a noun, as in "an orange on a plate"."""

DENIALS = ("without", "no", "not", "never", "nothing")

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class FalseCaption:
    text: str
    kind: str
    """colour, relation, count or noun."""


@dataclass(frozen=True)
class CaptionNoun:
    """A noun in a caption with the words before it that belong to it."""

    start: int
    """Of the phrase without its article or number, in characters."""
    head: tuple[int, int]
    """Of the noun alone."""
    noun: Noun
    plural: bool
    number: int | None
    """How many, where an article or a number says so."""


@dataclass(frozen=True)
class _Word:
    text: str
    start: int
    end: int

    @property
    def lower(self) -> str:
        return self.text.lower()


def _words_of(caption: str) -> list[_Word]:
    """Up to "without" or "no": what is denied could be changed and leave the caption true."""
    words = [_Word(match[0], *match.span()) for match in _WORD.finditer(caption)]
    end = next((at for at, word in enumerate(words) if word.lower in DENIALS), len(words))
    return words[:end]


def heads_with(nouns: Sequence[str] = ()) -> Heads:
    """The known nouns and these, in singular and plural."""
    own = {noun.lower(): (noun.lower(), False) for noun in nouns}
    return {**scene_heads(), **photo_heads(), **{plural(noun): (noun, True) for noun in own}, **own}


def noun_phrases(caption: str, heads: Heads) -> list[CaptionNoun]:
    """The known nouns of a caption, in order; the longest one wins, so that a "hot dog" is no dog."""
    words, phrases, at = _words_of(caption), [], 0
    while at < len(words):
        for length in (3, 2, 1):
            span = words[at : at + length]
            text = " ".join(word.lower for word in span)
            if len(span) == length and text in heads and not _is_colour(words, at):
                phrases.append(_phrase(words, at, span, heads[text]))
                at += length - 1
                break
        at += 1
    return phrases


def _phrase(words: list[_Word], at: int, span: list[_Word], head: tuple[str, bool]) -> CaptionNoun:
    sizes = {word: size for size, synonyms in SIZE_WORDS.items() for word in synonyms}
    first = at
    colour = size = None
    if first and (colour := colour_named(words[first - 1].lower)):
        first -= 1
    if first and (size := sizes.get(words[first - 1].lower)):
        first -= 1
    number = _number(words[first - 1]) if first else None
    return CaptionNoun(words[first].start, (span[0].start, span[-1].end), Noun(colour, head[0], size), head[1], number)


def _number(word: _Word) -> int | None:
    if word.lower in ("a", "an"):
        return 1
    if word.lower in NUMBER_WORDS[1:]:
        return NUMBER_WORDS.index(word.lower)
    return int(word.text) if word.text.isdecimal() and 1 <= int(word.text[:3]) <= MOST_OBJECTS else None


def _is_colour(words: list[_Word], at: int) -> bool:
    """Whether a colour word describes something: "an orange cat", but not "an orange on a plate"."""
    word = words[at].lower
    if colour_named(word) is None:
        return False
    following = words[at + 1].lower if at + 1 < len(words) else ""
    return word != "orange" or bool(following and following not in ENDS_A_PHRASE)


def false_captions(caption: str, nouns: Sequence[str] = ()) -> tuple[FalseCaption, ...]:
    """Captions that differ in one fact and contradict this one; empty if no rule applies."""
    heads = heads_with(nouns)
    words, phrases = _words_of(caption), noun_phrases(caption, heads)
    edits = {
        "relation": _relations(caption),
        "colour": _colours(caption, words, phrases),
        "count": _counts(caption, words, phrases),
        "noun": _nouns(caption, words, phrases, heads, nouns),
    }
    found: dict[str, FalseCaption] = {}
    for kind, texts in edits.items():
        different = [text for text in dict.fromkeys(texts) if text.lower() != caption.lower() and text not in found]
        found |= {text: FalseCaption(text, kind) for text in different[:EDITS_PER_KIND]}
    return tuple(found.values())


def _replaced(caption: str, changes: Sequence[tuple[int, int, str]]) -> str:
    """The caption with these spans replaced, and the article before each made to fit."""
    text = caption
    for start, end, new in sorted(changes, reverse=True):
        before = text[:start]
        if match := re.search(r"\b(an?)(\s+)$", before, re.I):
            fitting = article(new)
            fitting = fitting.capitalize() if match[1][0].isupper() else fitting
            before = before[: match.start(1)] + fitting + match[2]
        capital = text[start : start + 1].isupper()
        text = before + (new[:1].upper() + new[1:] if capital else new) + text[end:]
    return text


def _relations(caption: str) -> list[str]:
    """Each relation reversed; a longer wording hides the shorter ones in it."""
    words = _words_of(caption)
    end = words[-1].end if words else 0
    pattern = "|".join(sorted(map(re.escape, REVERSALS), key=len, reverse=True))
    found = re.finditer(rf"(?<![\w-])(?:{pattern})(?![\w-])", caption, re.I)
    return [_replaced(caption, [(*match.span(), REVERSALS[match[0].lower()])]) for match in found if match.end() <= end]


def _colours(caption: str, words: list[_Word], phrases: list[CaptionNoun]) -> list[str]:
    places = [at for at in range(len(words)) if _is_colour(words, at)]
    texts = []
    for first, second in pairwise(places):
        one, other = words[first], words[second]
        apart = [word.lower for word in words[first + 1 : second] if word.lower not in JOINING]
        heads = [_coloured(words, at, phrases) for at in (first, second)]
        if colour_named(one.lower) != colour_named(other.lower) and apart and heads[0] != heads[1]:
            texts.append(_replaced(caption, [(one.start, one.end, other.lower), (other.start, other.end, one.lower)]))
    present = {colour_named(words[at].lower) for at in places}
    choices = [colour for colour in COLOUR_WORDS if colour not in present]
    for at in places:
        new = KeyedRandom("false colour", caption.lower(), at).choice(choices)
        texts.append(_replaced(caption, [(words[at].start, words[at].end, new)]))
    return texts


def _coloured(words: list[_Word], at: int, phrases: list[CaptionNoun]) -> str | None:
    """What a colour word describes: the known noun, whichever synonym names it, or else the next word."""
    if at + 1 == len(words):
        return None
    following = words[at + 1]
    known = (phrase.noun.shape for phrase in phrases if phrase.head[0] == following.start)
    return next(known, following.lower)


def _counts(caption: str, words: list[_Word], phrases: list[CaptionNoun]) -> list[str]:
    texts = []
    for before, phrase in ((_word_before(words, phrase), phrase) for phrase in phrases):
        if before is None or phrase.number is None:
            continue
        if phrase.number == 1 and not phrase.plural and before.lower in ("a", "an"):
            start, end = phrase.head
            many = _plural(caption[start:end].lower())
            text = _replaced(caption, [(before.start, before.end, "two"), (start, end, many)])
            texts.append(text)
        elif phrase.number > 1 and phrase.plural:
            others = [n for n in (phrase.number + 1, phrase.number - 1) if 2 <= n < len(NUMBER_WORDS)]
            digits = before.text.isdecimal()
            texts += [
                _replaced(caption, [(before.start, before.end, str(n) if digits else NUMBER_WORDS[n])]) for n in others
            ]
    return texts


def _word_before(words: list[_Word], phrase: CaptionNoun) -> _Word | None:
    return next((word for word in reversed(words) if word.end <= phrase.start), None)


def _plural(noun: str) -> str:
    return IRREGULAR_PLURALS.get(noun) or (scene_plural(noun) if noun in scene_heads() else plural(noun))


def _attributes(phrase: CaptionNoun) -> tuple[str | None, str | None, int]:
    return phrase.noun.colour, phrase.noun.size, phrase.number or 1


def _nouns(caption: str, words: list[_Word], phrases: list[CaptionNoun], heads: Heads, own: Sequence[str]) -> list[str]:
    """Two nouns exchanged where their order means something; each noun replaced by another of its kind."""
    texts = []
    for first, second in pairwise(phrases):
        one, other = (caption[slice(*phrase.head)].lower() for phrase in (first, second))
        between = {word.lower for word in words if first.head[1] <= word.start and word.end <= second.start}
        bound = _attributes(first) != _attributes(second) or between - JOINING
        if first.noun.shape != second.noun.shape and first.plural == second.plural and bound:
            texts.append(_replaced(caption, [(*first.head, other), (*second.head, one)]))
    present = {phrase.noun.shape for phrase in phrases}
    for phrase in phrases:
        kind = [noun.lower() for noun in own] if phrase.noun.shape in [noun.lower() for noun in own] else None
        table = scene_heads() if phrase.noun.shape in {noun for noun, _ in scene_heads().values()} else photo_heads()
        choices = [noun for noun in (kind or sorted({noun for noun, _ in table.values()})) if noun not in present]
        if choices:
            new = KeyedRandom("false noun", caption.lower(), phrase.head[0]).choice(choices)
            texts.append(_replaced(caption, [(*phrase.head, _plural(new) if phrase.plural else new)]))
    return texts


MAX_COUNT = 4
"""The largest number of an alternative; the prompt's own may be larger."""


@dataclass(frozen=True)
class Alternative:
    """A caption, and the test that an image fails if this caption fits it better than its prompt."""

    text: str
    reason: Reason


def alternatives(prompt: Prompt) -> tuple[Alternative, ...]:
    """Other relations; colours exchanged; one of two objects missing; other numbers of a single noun."""
    counts = [claim for claim in prompt.facts if isinstance(claim, Count)]
    phrases = [Phrase(claim.noun, claim.n) for claim in counts]
    relation = next((c for c in prompt.facts if isinstance(c, Related | RelationByCentres | RelationOfBest)), None)
    found: list[Alternative] = []

    def add(reason: Reason, changed: list[Phrase], stated: str | None, absent: list[Noun]) -> None:
        text = detected_caption(prompt, changed, stated, absent, digits=False, digits_for_one=False, an=True)
        found.append(Alternative(text, reason))

    lacking = [claim.noun for claim in prompt.facts if isinstance(claim, Absent)]
    stated = relation.relation if relation is not None and len(phrases) > 1 else None
    if relation is not None and stated is not None:
        pair = [relation.first, relation.second]
        phrases.sort(key=lambda phrase: pair.index(phrase.noun) if phrase.noun in pair else len(pair))
        for other in RELATIONS:
            if other != stated:
                add("location", phrases, other, lacking)
    if len(phrases) > 1 and phrases[0].noun.colour != phrases[1].noun.colour:
        first, second = phrases[:2]
        swapped = [
            replace(first, noun=replace(first.noun, colour=second.noun.colour)),
            replace(second, noun=replace(second.noun, colour=first.noun.colour)),
        ]
        add("colour", [*swapped, *phrases[2:]], stated, lacking)
    if len(phrases) == 2:
        for phrase in phrases:
            add("number", [phrase], None, lacking)
    if len(phrases) == 1:
        for n in range(1, MAX_COUNT + 1):
            if n != phrases[0].n:
                add("number", [replace(phrases[0], n=n)], None, lacking)
    if lacking and phrases:
        add("number", [*phrases, *(Phrase(noun, 1) for noun in lacking)], None, [])
    return tuple(dict.fromkeys(found))
