"""Referring expressions: "the red circle left of the square" refers to exactly one object of its scene.

A reference (the structure) is drawn first, then put into words. `resolve` finds the objects that a reference means
from the reference alone, so it also works on detected objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dpt.claims.facts import RELATION_MARGIN, RELATIONS, Box, Noun, Thing, related
from dpt.claims.words import EXTREMES, RELATION_WORDS, choose_word, noun_words
from dpt.data.scenes.world import Scene, SceneObject, World
from dpt.keyed_random import KeyedRandom


@dataclass(frozen=True)
class NounReference:
    """The only thing that matches the noun: "the red circle"."""

    noun: Noun


@dataclass(frozen=True)
class RelativeReference:
    """The only match in this relation to the landmark: "the red circle left of the square"."""

    noun: Noun
    relation: str
    landmark: Noun


@dataclass(frozen=True)
class ExtremeReference:
    """The match that is farthest to a side: "the leftmost circle"."""

    noun: Noun
    side: str


Reference = NounReference | RelativeReference | ExtremeReference


KINDS: dict[str, type[NounReference] | type[RelativeReference] | type[ExtremeReference]] = {
    "attributes": NounReference,
    "relation": RelativeReference,
    "extreme": ExtremeReference,
}

KIND_WEIGHTS = {"attributes": 0.45, "relation": 0.35, "extreme": 0.2}


@dataclass(frozen=True)
class SceneExpression:
    text: str
    reference: Reference
    target: int
    """Index of the object it refers to."""
    box: Box
    span: tuple[int, int]
    """The head noun in the text: start and exclusive end."""

    @property
    def kind(self) -> str:
        return next(name for name, type_ in KINDS.items() if isinstance(self.reference, type_))


def resolve(reference: Reference, things: Sequence[Thing], margin: float = RELATION_MARGIN) -> list[int]:
    """Indices of the things that the reference may mean; exactly one if it is unambiguous."""
    candidates = [i for i, thing in enumerate(things) if reference.noun.matches(thing)]
    if isinstance(reference, NounReference):
        return candidates
    if isinstance(reference, ExtremeReference):
        return [i for i in candidates if len(candidates) > 1 and _leads(i, candidates, things, reference.side, margin)]
    landmarks = [i for i, thing in enumerate(things) if reference.landmark.matches(thing)]
    if len(landmarks) != 1:
        return []
    (landmark,) = landmarks
    return [
        i
        for i in candidates
        if i != landmark and related(things[i].box, things[landmark].box, reference.relation, margin)
    ]


def _leads(i: int, candidates: list[int], things: Sequence[Thing], side: str, margin: float) -> bool:
    return all(related(things[i].box, things[j].box, side, margin) for j in candidates if j != i)


def referring_expressions(scene: Scene, world: World, rng: KeyedRandom) -> list[SceneExpression]:
    """All unambiguous expressions of the scene."""
    return [
        reference_text(reference, scene, target, rng)
        for target in range(len(scene.objects))
        for reference in references(scene, target, world)
    ]


def referring_expression(
    scene: Scene,
    world: World,
    rng: KeyedRandom,
    kinds: Sequence[str] = tuple(KINDS),
) -> SceneExpression | None:
    """A random one: the object first, then the kind of reference; None if no object has one."""
    for target in rng.sample(range(len(scene.objects)), len(scene.objects)):
        known = references(scene, target, world)
        possible = {kind: [r for r in known if isinstance(r, KINDS[kind])] for kind in kinds}
        weighted = [(candidates, KIND_WEIGHTS[kind]) for kind, candidates in possible.items() if candidates]
        if weighted:
            return reference_text(rng.choice(rng.weighted_choice(weighted)), scene, target, rng)
    return None


def references(scene: Scene, target: int, world: World) -> list[Reference]:
    """Every reference of the grammar that means the target and no other object."""
    return [
        reference
        for reference in _conceivable(scene, target, world)
        # Also without a margin: an object slightly to the left would make the reference ambiguous.
        if resolve(reference, scene.objects) == [target] == resolve(reference, scene.objects, margin=0)
    ]


def reference_text(reference: Reference, scene: Scene, target: int, rng: KeyedRandom | None = None) -> SceneExpression:
    """The reference in words; without rng, in its plainest wording."""
    extreme = [EXTREMES[reference.side]] if isinstance(reference, ExtremeReference) else []
    words = ["the", *extreme, *noun_words(reference.noun, rng)]
    text = " ".join(words)
    span = (len(text) - len(words[-1]), len(text))
    if isinstance(reference, RelativeReference):
        relation = choose_word(RELATION_WORDS[reference.relation], rng)
        text += f" {relation} the {' '.join(noun_words(reference.landmark, rng))}"
    return SceneExpression(text, reference, target, scene.objects[target].box, span)


def _conceivable(scene: Scene, target: int, world: World) -> Iterator[Reference]:
    thing = scene.objects[target]
    nouns = _nouns(thing)
    yield from (NounReference(noun) for noun in nouns)
    yield from (NounReference(noun) for noun in _nouns_with_size(thing, scene))
    for relation in RELATIONS:
        yield from (ExtremeReference(noun, relation) for noun in (*nouns, Noun()))
        for other in scene.objects:
            if (thing.shape, relation, other.shape) not in world.held_out_relations:
                yield from (
                    RelativeReference(noun, relation, landmark)
                    for noun in nouns
                    for landmark in _nouns(other)
                    if other != thing
                )


def _nouns(thing: SceneObject) -> list[Noun]:
    return [Noun(shape=thing.shape), Noun(thing.colour, thing.shape), Noun(thing.colour)]


def _nouns_with_size(thing: SceneObject, scene: Scene) -> list[Noun]:
    """Nouns in which the size distinguishes the thing from another match."""
    return [
        Noun(noun.colour, noun.shape, thing.size)
        for noun in _nouns(thing)
        if any(noun.matches(other) and other.size != thing.size for other in scene.objects)
    ]
