"""False captions by rule: each contradicts its caption, and no rule is applied that could leave it true."""

from __future__ import annotations

import pytest

from dpt.claims.caption_edits import false_captions, heads_with, noun_phrases
from dpt.claims.facts import all_hold
from dpt.claims.parse import is_supported, parse_prompt
from dpt.claims.words import caption_text
from dpt.data.scenes.captions import describe_scene
from dpt.data.scenes.world import POCKET_WORLD, make_scene
from dpt.keyed_random import KeyedRandom


def texts(caption: str, *kinds: str, nouns: tuple[str, ...] = ()) -> set[str]:
    return {edit.text for edit in false_captions(caption, nouns) if not kinds or edit.kind in kinds}


def test_one_fact_is_changed_and_articles_fit() -> None:
    assert "A dog to the right of a chair." in texts("A dog to the left of a chair.", "relation")
    assert "a cat underneath the couch" in texts("a cat on top of the couch", "relation")
    assert "a blue car beside an orange bus" in texts("an orange car beside a blue bus", "colour")
    assert texts("two dogs and 3 cats", "count") == {"three dogs and 3 cats", "two dogs and 4 cats"}
    assert "two red apples on a table" in texts("a red apple on a table", "count")
    assert "A cat chasing an elephant" in texts("An elephant chasing a cat", "noun")
    assert "Two people walk past sheep" not in texts("Two people walk past sheep")
    assert "A lighthouse behind a cottage" in texts("A cottage behind a lighthouse", nouns=("cottage", "lighthouse"))


@pytest.mark.parametrize("caption", ["Sunset, long exposure", "", "nothing here", "no dogs", "a portrait of my aunt"])
def test_no_rule_applies(caption: str) -> None:
    assert false_captions(caption) == ()


def test_a_change_that_could_leave_the_caption_true_is_not_made() -> None:
    assert "a white and red bus" not in texts("a red and white bus")
    assert "a blue car and a red car" not in texts("a red car and a blue car")
    assert "a cat and a dog" not in texts("a dog and a cat")
    assert {text.partition(" without ")[2] for text in texts("two red cars without a dog")} == {"a dog"}
    assert not any("orange" not in text and "oranges" not in text for text in texts("an orange on a plate", "colour"))


def test_false_captions_of_rendered_scenes_are_false() -> None:
    """Always if the caption names everything in the image; what it leaves out could make an edit true by chance."""
    checked, true = 0, 0
    for index in range(150):
        scene, rng = make_scene(1, index, POCKET_WORLD), KeyedRandom("caption edits", index)
        right = describe_scene(scene, POCKET_WORLD, rng)
        caption = caption_text(right, rng)
        for edit in false_captions(caption):
            if is_supported(edit.text):
                holds = all_hold(parse_prompt(edit.text).facts, scene.objects)
                names_all = sum(group.n for group in right.groups) == len(scene.objects)
                assert not (holds and names_all), f"{caption!r} -> {edit.text!r}"
                checked, true = checked + 1, true + holds
    assert checked > 300 and true < 0.05 * checked


def test_noun_phrases_have_their_words_and_number() -> None:
    caption = "A small red car, two hot dogs and the people with Lamps"
    phrases = noun_phrases(caption, heads_with(["lamp"]))
    found = [(caption[p.start : p.head[1]], p.noun.shape, p.plural, p.number) for p in phrases]
    assert found == [
        ("small red car", "car", False, 1),
        ("hot dogs", "hot dog", True, 2),
        ("people", "person", True, None),
        ("Lamps", "lamp", True, None),
    ]
    assert (phrases[0].noun.colour, phrases[0].noun.size) == ("red", "small")
