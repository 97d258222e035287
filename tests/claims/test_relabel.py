"""Prompt relabelling: the published truth table, and captions that hold for the detections they were made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from dpt.claims.facts import Box, ColourOfBest, Count, FewerThan, Noun, Prompt, RelationByCentres, RelationOfBest
from dpt.claims.judge import DetectConfig, Detection, Detections, Unreadable, judge
from dpt.claims.relabel import PUBLISHED, RelabelConfig, relabel
from dpt.claims.words import parse_caption
from dpt.data.mixture import mirrored_text
from dpt.data.scenes.world import POCKET_WORLD
from dpt.errors import UserError
from dpt.evaluation.suites import lmd, sr2d
from dpt.evaluation.suites.pocket import CATEGORIES, pocket_prompts
from dpt.keyed_random import KeyedRandom

WORDS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
PLACES = {"left": ((0, 0), (30, 0)), "right": ((30, 0), (0, 0)), "above": ((0, 0), (0, 30)), "below": ((0, 30), (0, 0))}


def spatial(first: str, relation: str, second: str) -> Prompt:
    a, b = Noun(shape=first), Noun(shape=second)
    facts = (Count(a, 1, exact=False), Count(b, 1, exact=False), RelationByCentres(a, relation, b, best_only=False))
    art = {noun: f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in (first, second)}
    return Prompt("sr2d-1", relation, f"{art[first]} {WORDS[relation]} {art[second]}", facts, closed=False)


def at(label: str, x: float, y: float, score: float = 0.9, colour: str | None = None) -> Detection:
    return Detection(label, Box(x, y, x + 10, y + 10), score, colour)


def seen(*objects: Detection) -> Detections:
    return Detections(objects)


DOG_LEFT_OF_CAT = spatial("dog", "left", "cat")
DOGS_AND_CAT = seen(at("dog", 0, 0), at("dog", 5, 30), at("cat", 30, 0))


@pytest.mark.parametrize(
    ("detections", "correct", "published", "truthful", "reason"),
    [
        (seen(at("dog", 0, 0), at("cat", 30, 5)), True, "a dog to the left of a cat", None, "location"),
        (seen(at("dog", 30, 0), at("cat", 0, 5)), False, "a dog to the right of a cat", None, "location"),
        (
            seen(at("dog", 7, 0), at("cat", 7, 40)),
            False,
            "a dog to the right of a cat",
            "a dog above a cat",
            "location",
        ),
        (DOGS_AND_CAT, False, "2 dog and 1 cat", "two dogs and a cat", "number"),
        (seen(at("dog", 0, 0), at("dog", 20, 0)), False, "2 dog", "two dogs", "number"),
        (seen(at("cat", 0, 0)), False, "1 cat", "a cat", "number"),
        (seen(), False, "0 cat", "", "number"),
    ],
)
def test_the_published_table_and_the_truthful_captions(
    detections: Detections, correct: bool, published: str, truthful: str | None, reason: str
) -> None:
    as_published, default = (relabel(DOG_LEFT_OF_CAT, detections, config) for config in (PUBLISHED, RelabelConfig()))
    assert (as_published.correct, as_published.caption, as_published.reason) == (correct, published, reason)
    expected = published if truthful is None else truthful or None
    assert (default.correct, default.caption, default.reason) == (correct, expected, reason)


def test_an_unnamed_object_is_a_fault_only_as_published() -> None:
    detections = seen(at("dog", 0, 0), at("cat", 30, 5), at("object", 50, 50))
    published = relabel(DOG_LEFT_OF_CAT, detections, PUBLISHED)
    assert (published.correct, published.caption, published.reason) == (False, "1 dog and 1 cat", "number")
    assert relabel(DOG_LEFT_OF_CAT, detections).correct


@pytest.mark.parametrize("relation", WORDS)
@pytest.mark.parametrize("shown", WORDS)
def test_every_relation_in_both_orders(relation: str, shown: str) -> None:
    places = PLACES[shown]
    for first, second in (("elephant", "apple"), ("apple", "elephant")):
        relabelled = relabel(spatial(first, relation, second), seen(at(first, *places[0]), at(second, *places[1])))
        assert relabelled.correct == (relation == shown)
        assert relabelled.caption == f"an {first} {WORDS[shown]} an {second}"


def test_the_published_article_and_the_options_of_empty_images() -> None:
    elephant = spatial("elephant", "below", "apple")
    swapped = seen(at("elephant", 0, 0), at("apple", 0, 30))
    assert relabel(elephant, swapped, PUBLISHED).caption == "a elephant above a apple"
    assert relabel(elephant, seen(), RelabelConfig(empty_policy="describe")).caption == "an empty scene"
    assert relabel(elephant, seen(), RelabelConfig(empty_policy="keep_zero")).caption == "0 apple"


def test_failures_can_keep_their_caption_or_be_dropped() -> None:
    keep, drop = (relabel(DOG_LEFT_OF_CAT, DOGS_AND_CAT, RelabelConfig(failures=f)) for f in ("keep", "drop"))  # type: ignore[arg-type]
    assert (keep.caption, keep.correct) == (DOG_LEFT_OF_CAT.text, False)
    assert (drop.caption, drop.skipped) == (None, "failures are dropped")


def test_a_noun_inside_another_noun_is_another_noun() -> None:
    for inner, outer in (("car", "carrot"), ("dog", "hot dog"), ("bear", "teddy bear")):
        both = seen(at(outer, 0, 0), at(inner, 30, 5))
        assert relabel(spatial(inner, "left", outer), both).caption == f"a {inner} to the right of a {outer}"
        assert relabel(spatial(inner, "right", outer), both, PUBLISHED).correct
        assert relabel(spatial(inner, "left", outer), seen(at(outer, 0, 0))).caption == f"a {outer}"


def test_a_tie_margin_and_duplicates_of_another_noun() -> None:
    near = seen(at("dog", 0, 0), at("cat", 4, 30))
    assert relabel(DOG_LEFT_OF_CAT, near).correct
    assert relabel(DOG_LEFT_OF_CAT, near, RelabelConfig(tie_margin=5)).caption == "a dog above a cat"
    twice = seen(at("dog", 0, 0, 0.9), at("cat", 30, 0, 0.8), at("cat", 1, 0, 0.3))
    assert relabel(DOG_LEFT_OF_CAT, twice).caption == "a dog and two cats"
    assert relabel(DOG_LEFT_OF_CAT, twice, RelabelConfig(cross_class_nms=0.8)).correct
    with pytest.raises(UserError, match="--cross_class_nms is an IoU"):
        RelabelConfig(cross_class_nms=2)
    with pytest.raises(UserError, match="--tie_margin"):
        RelabelConfig(tie_margin=-1)


def scene(*objects: tuple[str, str, int, int]) -> Detections:
    return seen(*(at(shape, x, y, 1.0, colour) for colour, shape, x, y in objects))


def pocket(category: str, words: str) -> Prompt:
    return next(p for p in pocket_prompts(category, 3000) if words in p.text)


def test_scenes_are_relabelled_by_number_colour_relation_and_absence() -> None:
    pair = next(p for p in pocket_prompts("spatial", 3000) if p.text == "a red circle above a blue square")
    swapped = relabel(pair, scene(("blue", "circle", 0, 0), ("red", "square", 0, 30)))
    assert (swapped.caption, swapped.reason) == ("a blue circle above a red square", "colour")
    aside = relabel(pair, scene(("red", "circle", 40, 3), ("blue", "square", 0, 0)))
    assert (aside.caption, aside.reason) == ("a red circle to the right of a blue square", "location")
    close = relabel(pair, scene(("red", "circle", 3, 3), ("blue", "square", 0, 0)))
    assert close.caption == "a red circle and a blue square"
    third = relabel(pair, scene(("red", "circle", 0, 0), ("blue", "square", 0, 30), ("cyan", "cross", 30, 30)))
    assert (third.caption, third.reason) == ("a red circle above a blue square and a cyan cross", "number")
    without = pocket("negation", "two green circles without crosses")
    present = relabel(without, scene(("green", "circle", 0, 0), ("green", "circle", 30, 0), ("red", "cross", 0, 30)))
    assert (present.caption, present.reason) == ("two green circles and a cross", "number")
    fewer = relabel(without, scene(("green", "circle", 0, 0)))
    assert fewer.caption == "a green circle without crosses"
    unreadable = Detections((at("circle", 0, 0, 1.0, "green"),), (Unreadable(Box(0, 0, 5, 5), "blurred"),))
    assert relabel(without, unreadable).skipped == "an object is unreadable"
    assert relabel(without, unreadable, RelabelConfig(failures="keep")).caption == without.text
    six = scene(*(("green", "circle", 15 * i, 0) for i in range(6)))
    assert relabel(pocket("count", "green circle"), six).skipped == "too many objects to put into words"


def test_prompts_of_other_suites_keep_their_wording() -> None:
    def lmd_prompt(words: str) -> Prompt:
        return next(p for p in lmd.suite().prompts if words in p.text)

    numeracy, negation = lmd_prompt("with two books"), lmd_prompt("without books")
    assert relabel(numeracy, seen(*(at("book", 20 * i, 0) for i in range(3))), detect_config=lmd.DETECT).caption == (
        "A realistic photo of a scene with three books"
    )
    assert relabel(negation, seen(at("book", 0, 0)), detect_config=lmd.DETECT).caption == (
        "A realistic photo of a scene with a book"
    )
    places = next(p for p in lmd.suite().prompts if p.category == "spatial" and "on the left and" in p.text)
    first, second = (noun.shape or "" for noun in places.nouns)
    moved = relabel(places, seen(at(first, 50, 0), at(second, 0, 4)), detect_config=lmd.DETECT).caption
    assert moved == f"A realistic photo of a scene with a {first} on the right and a {second} on the left"
    dog, bear = Noun(shape="dog"), Noun(shape="teddy bear")
    geneval = Prompt(
        "1", "position", "a photo of a dog right of a teddy bear",
        (Count(bear, 1, False), Count(dog, 1, False), RelationOfBest(dog, 1, "right", bear, 1)), closed=False,
    )  # fmt: skip
    assert relabel(geneval, seen(at("dog", 0, 0), at("teddy bear", 60, 0))).caption == (
        "a photo of a dog left of a teddy bear"
    )
    car = Prompt(
        "2", "colors", "a photo of a red car",
        (Count(Noun(shape="car"), 1, False), ColourOfBest(Noun("red", "car"), 1), FewerThan(Noun(shape="car"), 2)),
        closed=False,
    )  # fmt: skip
    blue = relabel(car, seen(at("car", 0, 0, 0.9, "blue")))
    assert (blue.caption, blue.reason) == ("a photo of a blue car", "colour")


def cases() -> Iterator[tuple[Prompt, Detections, DetectConfig | None]]:
    """Prompts of every category and suite, with random detections that are often nearly right."""
    every = [prompt for category in CATEGORIES for prompt in pocket_prompts(category, 60, seed=3)]
    open_prompts = [*lmd.suite().prompts[::2], *sr2d.suite().prompts[:: 31680 // 200]]
    for number, prompt in enumerate([*every * 4, *open_prompts * 3]):
        rng = KeyedRandom("relabel", number)
        closed_set = number < 4 * len(every)
        config = None if closed_set else lmd.DETECT if prompt.id.startswith("lmd") else sr2d.DETECT
        nouns = [*prompt.nouns, *prompt.nouns]
        objects = []
        for _ in range(rng.randrange(5)):
            noun = rng.choice(nouns)
            shape, colour = noun.shape or "", noun.colour
            if closed_set and rng.chance(0.3):
                shape = rng.choice(POCKET_WORLD.shapes)
            if closed_set and (colour is None or rng.chance(0.3)):
                colour = rng.choice(POCKET_WORLD.colours)
            label = shape if config is None else config.phrase(noun)
            x, y = (float(rng.randrange(8) * 6) for _ in range(2))
            objects.append(at(label, x, y, 0.5 + 0.5 * rng.uniform(0, 1), colour if closed_set else None))
        yield prompt, Detections(tuple(objects)), config


def test_a_relabelled_caption_holds_for_the_same_detections() -> None:
    changed = correct = parsed = 0
    for prompt, detections, config in cases():
        for option in (RelabelConfig(), RelabelConfig(empty_policy="describe"), RelabelConfig(counting="digits")):
            new = relabel(prompt, detections, option, config)
            if new.prompt is None:
                assert new.skipped and not new.correct
                continue
            assert judge(new.prompt, detections, config).passed, (prompt.text, new.caption, detections)
            relabelled_again = relabel(new.prompt, detections, option, config)
            assert relabelled_again.correct and relabelled_again.caption == new.caption, (
                prompt.text,
                new.caption,
                detections,
            )
            correct, changed = correct + new.correct, changed + (new.caption != prompt.text)
            assert not new.correct or new.prompt is prompt
            if config is None and option == RelabelConfig():
                described = parse_caption(new.prompt.text, POCKET_WORLD)
                assert described is not None, new.caption
                sentence = replace(new.prompt, facts=described.facts)
                assert judge(sentence, detections).passed, (new.caption, detections)
                parsed += 1
    assert correct > 200 and changed > 1000 and parsed > 500


def test_mirrored_boxes_give_the_mirrored_caption() -> None:
    checked = 0
    for prompt, detections, config in cases():
        if prompt.category not in ("spatial", "left", "right", "above", "below"):
            continue
        flipped = tuple(
            replace(d, box=Box(64 - d.box.x1, d.box.y0, 64 - d.box.x0, d.box.y1)) for d in detections.objects
        )
        caption = relabel(prompt, detections, detect_config=config).caption
        mirror = mirrored_text(prompt.text)
        if caption is None or mirror is None:
            continue
        relations = {"left": "right", "right": "left"}
        facts = tuple(
            replace(c, relation=relations.get(c.relation, c.relation)) if hasattr(c, "relation") else c
            for c in prompt.facts
        )
        other = relabel(replace(prompt, text=mirror, facts=facts), Detections(flipped), detect_config=config)
        assert other.caption == mirrored_text(caption), (prompt.text, detections)
        checked += 1
    assert checked > 100
