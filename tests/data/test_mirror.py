from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dpt.claims.facts import Box, all_hold
from dpt.claims.words import ANYTHING, SHAPE_WORDS
from dpt.data.example import Example, ExampleImage, GroundedRegion, Negative, Negatives, ReferringExpression
from dpt.data.images import Framing
from dpt.data.mixture import mirrored, mirrored_expression, mirrored_text
from dpt.data.scenes.referring import resolve
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import WORLDS, Scene
from tests.data.scenes.reading import facts_of, negatives_of, reference_of

HEADS = {*ANYTHING, *(word for words in SHAPE_WORDS.values() for word in words)}
words = st.sampled_from(
    ["left", "right", "Left", "RIGHT", "leftmost", "rightmost", "left-hand", "bright", "upright", "the", "dog", "of",
     "on", "side", "man's", "and,", "(blue)", "is", "one", "behind", "2", "L", "o'clock", "leftover", "lEft", "topleft",
     "naïve"]
)  # fmt: skip
texts = st.lists(words, min_size=1, max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("dog left of the bench", "dog right of the bench"),
        ("the leftmost bright cup on the right", "the rightmost bright cup on the left"),
        ("Left-hand side, far RIGHT", "Right-hand side, far LEFT"),
        ("upright man's left arm", "upright man's right arm"),
        ("the woman who is left of the tree", "the woman who is right of the tree"),
        ("two cups", "two cups"),
        ("a brightly lit copyright sign", "a brightly lit copyright sign"),
    ],
)
def test_left_and_right_are_swapped_as_whole_words(text: str, other: str) -> None:
    assert mirrored_text(text) == other
    assert mirrored_text(other) == text


@pytest.mark.parametrize(
    "text",
    [
        "the car right behind the bus", "the only slice that is left", "man far R", "l guy", "plate at 3 o'clock",
        "sign that says stop", "leftover pizza", "topleft cup", "the west tower", "right now", "all right", "lEft dog",
    ],
)  # fmt: skip
def test_ambiguous_text_is_not_mirrored(text: str) -> None:
    assert mirrored_text(text) is None


@given(texts)
def test_mirroring_twice_restores_the_text(text: str) -> None:
    other = mirrored_text(text)
    if other is not None:
        assert mirrored_text(other) == text


@st.composite
def expressions(draw: st.DrawFn) -> ReferringExpression:
    text = draw(texts)
    edges = st.integers(0, len(text))
    spans = draw(st.lists(st.tuples(edges, edges).map(sorted).filter(lambda s: s[0] < s[1]), min_size=1, max_size=3))
    cx, cy = draw(st.floats(0.2, 0.8)), draw(st.floats(0.2, 0.8))
    return ReferringExpression(
        text,
        (GroundedRegion((cx, cy, 0.3, 0.2), tuple((a, b) for a, b in spans)), GroundedRegion((0.5, 0.5, 1, 1), ())),
    )


def cuts_no_word(text: str, edge: int) -> bool:
    return not (text[:edge][-1:].isalnum() and text[edge:][:1].isalnum())


@given(expressions())
@example(ReferringExpression("bright", (GroundedRegion((0.5, 0.5, 0.3, 0.2), ((1, 6),)),)))
def test_spans_follow_their_words(expression: ReferringExpression) -> None:
    other = mirrored_expression(expression)
    if other is None:
        return
    for before, after in zip(expression.regions, other.regions, strict=True):
        for (a, b), (c, d) in zip(before.spans, after.spans, strict=True):
            if cuts_no_word(expression.text, a) and cuts_no_word(expression.text, b):  # "right" in "bright" is no side
                assert mirrored_text(expression.text[a:b]) in (other.text[c:d], None)
        assert after.box[0] == pytest.approx(1 - before.box[0]) and after.box[1:] == before.box[1:]
    again = mirrored_expression(other)
    assert again is not None and again.text == expression.text
    assert [region.spans for region in again.regions] == [region.spans for region in expression.regions]
    assert [region.box for region in again.regions] == [pytest.approx(region.box) for region in expression.regions]


def test_span_inside_a_word_is_not_mirrored() -> None:
    assert mirrored_expression(ReferringExpression("left dog", (GroundedRegion((0.5, 0.5, 1, 1), ((2, 8),)),))) is None
    moved = mirrored_expression(ReferringExpression("left dog", (GroundedRegion((0.5, 0.5, 1, 1), ((5, 8), (0, 8))),)))
    assert moved is not None and moved.text == "right dog" and moved.regions[0].spans == ((6, 9), (0, 9))


def flipped(scene: Scene) -> Scene:
    size = scene.image_size
    return Scene(
        tuple(
            type(thing)(thing.shape, thing.colour, thing.size,
                        Box(size - thing.box.x1, thing.box.y0, size - thing.box.x0, thing.box.y1))
            for thing in scene.objects
        ),
        scene.background,
        size,
    )  # fmt: skip


@pytest.mark.parametrize("world", ["pocket", "full"])
def test_mirrored_texts_are_true_of_the_mirrored_scene(world: str) -> None:
    source = SceneSource(WORLDS[world], 5, "train", Framing(64), size=120)
    sides = 0
    for index in range(len(source)):
        example, scene = source[index], flipped(source.scene(index))
        other = mirrored(example)
        assert other is not None and other.expression is not None
        caption, hard, random = negatives_of(other)
        assert all_hold(facts_of(caption), scene.objects), caption
        assert not all_hold(facts_of(hard.caption), scene.objects)
        assert not all_hold(facts_of(random.caption), scene.objects)
        (region,) = other.expression.regions
        (span,) = region.spans
        assert other.expression.text[slice(*span)] in HEADS
        (target,) = resolve(reference_of(other.expression.text), scene.objects)
        assert region.box == pytest.approx(shares(scene.objects[target].box))
        assert torch.equal(other.image.values, example.image.values.flip(-1))
        sides += other.texts != example.texts
        again = mirrored(other)
        assert again is not None and again.texts == example.texts
        assert all(torch.equal(a.values, b.values) for a, b in zip(again.pictures, example.pictures, strict=True))
    assert sides > 30


def shares(box: Box) -> tuple[float, ...]:
    return box.centre[0] / 64, box.centre[1] / 64, box.width / 64, box.height / 64


def test_one_ambiguous_text_keeps_the_example_unmirrored() -> None:
    picture = ExampleImage("a", torch.zeros(3, 2, 2))
    for place in range(3):
        captions = ["left dog"] * 3
        captions[place] = "right behind the dog"
        true, hard, random = captions
        negatives = Negatives(Negative(hard, picture), Negative(random, picture))
        assert mirrored(Example("1", picture, true, negatives=negatives)) is None


def test_latents_cannot_be_flipped() -> None:
    with pytest.raises(ValueError, match="latents cannot be flipped"):
        mirrored(Example("1", ExampleImage("a", torch.zeros(4, 2, 2), latent=True)))


def test_mirrored_latents_replace_the_plain_ones() -> None:
    plain, turned = torch.zeros(4, 2, 2), torch.ones(4, 2, 2)
    once = mirrored(Example("1", ExampleImage("a", plain, latent=True, mirrored=turned)))
    assert once is not None and once.image.values is turned
    again = mirrored(once)
    assert again is not None and again.image.values is plain
