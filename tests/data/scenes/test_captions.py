from __future__ import annotations

from hypothesis import given

from dpt.claims.facts import Absent, Count, Noun, Related, all_hold
from dpt.claims.words import Description, Group, caption_text, vocabulary
from dpt.data.scenes.captions import describe_scene, scene_caption
from dpt.data.scenes.world import POCKET_WORLD, Scene, World, make_scene
from dpt.keyed_random import KeyedRandom
from tests.data.scenes.strategies import noises, worlds_with_scenes

WORDS = set(vocabulary())


@given(worlds_with_scenes(), noises)
def test_captions_are_true_and_in_the_vocabulary(drawn: tuple[World, Scene, int], noise: float) -> None:
    world, scene, index = drawn
    caption = scene_caption(scene, world, KeyedRandom("test", index), noise)
    assert all_hold(caption.facts, scene.objects)
    assert set(caption.text.split()) <= WORDS
    assert caption.text == " ".join(caption.text.split())


@given(worlds_with_scenes())
def test_clean_caption_counts_exactly_and_names_each_kind_once(drawn: tuple[World, Scene, int]) -> None:
    world, scene, index = drawn
    counts = [f for f in scene_caption(scene, world, KeyedRandom("test", index)).facts if isinstance(f, Count)]
    assert counts
    assert all(count.exact for count in counts)
    assert len({count.noun for count in counts}) == len(counts)


@given(worlds_with_scenes())
def test_noisy_caption_names_no_kind_twice(drawn: tuple[World, Scene, int]) -> None:
    """Two circles whose colours are left out are "two circles", never "a circle and a circle"."""
    world, scene, index = drawn
    counts = [f for f in scene_caption(scene, world, KeyedRandom("test", index), 1.0).facts if isinstance(f, Count)]
    assert len({count.noun for count in counts}) == len(counts)


def test_caption_depends_only_on_its_key() -> None:
    scene = make_scene(0, 3)
    texts = [scene_caption(scene, POCKET_WORLD, KeyedRandom("key", 1), 0.5).text for _ in range(3)]
    assert len(set(texts)) == 1


def test_noise_drops_facts() -> None:
    def facts(noise: float) -> int:
        scenes = (make_scene(0, i, POCKET_WORLD) for i in range(300))
        return sum(
            len(scene_caption(scene, POCKET_WORLD, KeyedRandom(i), noise).facts) for i, scene in enumerate(scenes)
        )

    assert facts(1.0) < 0.9 * facts(0.0)


@given(worlds_with_scenes())
def test_captions_state_no_held_out_relation(drawn: tuple[World, Scene, int]) -> None:
    world, scene, index = drawn
    for fact in describe_scene(scene, world, KeyedRandom("test", index)).facts:
        if isinstance(fact, Related):
            assert (fact.first.shape, fact.relation, fact.second.shape) not in world.held_out_relations


def test_captions_of_every_template_occur() -> None:
    captions = [scene_caption(make_scene(0, i), POCKET_WORLD, KeyedRandom(i)) for i in range(600)]
    relations = {fact.relation for c in captions for fact in c.facts if isinstance(fact, Related)}
    counts = {fact.n for c in captions for fact in c.facts if isinstance(fact, Count)}
    assert relations == {"left", "right", "above", "below"}
    assert counts == {1, 2, 3, 4}
    assert any(isinstance(fact, Absent) for c in captions for fact in c.facts)
    words = {word for c in captions for word in c.text.split()}
    assert {"disc", "box", "violet", "over", "without", "drawing"} <= words


def test_caption_without_rng_uses_the_plainest_words() -> None:
    red, blue = Noun("red", "circle"), Noun("orange", "square")
    assert caption_text(Description((Group(red, 1), Group(blue, 1)), "left")) == (
        "a red circle to the left of an orange square"
    )
    assert (
        caption_text(Description((Group(red, 3),), absent=Noun(shape="cross"))) == "three red circles without crosses"
    )
    assert caption_text(Description((Group(red, 2, vague=True),))) == "some red circles"
