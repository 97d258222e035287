from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from dpt.claims.facts import Related, all_hold
from dpt.claims.words import ANYTHING, SHAPE_WORDS
from dpt.data.images import Framing
from dpt.data.scenes.captions import NEGATIVE_TYPES
from dpt.data.scenes.export import FIRST_INDEX, RANGE
from dpt.data.scenes.referring import RelativeReference, resolve
from dpt.data.scenes.render import render
from dpt.data.scenes.source import FIRST_SCENE, SceneSource
from dpt.data.scenes.world import POCKET_WORLD, WORLDS, make_scene
from tests.data.scenes.reading import facts_of, negatives_of, reference_of


def source(world: str = "pocket", split: str = "train", **more: object) -> SceneSource:
    return SceneSource(WORLDS[world], 3, split, Framing(64), size=80, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("world", ["pocket", "full"])
def test_example_describes_its_scene(world: str) -> None:
    examples = source(world)
    for index in range(len(examples)):
        example, scene = examples[index], examples.scene(index)
        expression = example.expression
        assert expression is not None
        caption, hard, random = negatives_of(example)
        assert all_hold(facts_of(caption), scene.objects)
        assert not all_hold(facts_of(hard.caption), scene.objects)
        assert not all_hold(facts_of(random.caption), scene.objects)
        pixels = (example.image.values.permute(1, 2, 0) + 1) * 127.5
        np.testing.assert_allclose(pixels.numpy(), render(scene), atol=1e-3)
        (target,) = resolve(reference_of(expression.text), scene.objects)
        (region,) = expression.regions
        thing = scene.objects[target]
        assert region.box == pytest.approx(
            tuple(n / 64 for n in (*thing.box.centre, thing.box.width, thing.box.height))
        )
        ((first, last),) = region.spans
        assert expression.text[first:last] in (*SHAPE_WORDS[thing.shape], *ANYTHING)
        for other in (hard.image, random.image):
            assert other.values.shape == (3, 64, 64)
            assert not torch.equal(other.values, example.image.values)


def test_example_depends_only_on_index_and_epoch() -> None:
    once, again = source(), source()
    backwards = [again[index].texts for index in reversed(range(20))]
    assert [once[index].texts for index in range(20)] == backwards[::-1]
    assert [once[index].texts for index in range(20)] != [once.example(index, 1).texts for index in range(20)]
    assert all(once.scene(index) == once.scene(index, epoch=7) for index in range(20))


def test_splits_share_no_scenes() -> None:
    assert {FIRST_SCENE["train"], FIRST_SCENE["val"], FIRST_SCENE["test"]} <= set(FIRST_INDEX.values())
    for split, first in FIRST_SCENE.items():
        unchanged = [source(split=split).scene(i) == make_scene(3, first + i, POCKET_WORLD) for i in range(40)]
        assert sum(unchanged) > 30, "few scenes admit no expression"
    assert source(split="train")[0].id != source(split="val")[0].id
    assert all(b - a >= RANGE for a, b in pairwise(sorted(FIRST_SCENE.values())))


def test_negative_types_are_as_configured() -> None:
    for types in (NEGATIVE_TYPES, ("colour",)):
        drawn = [negatives_of(source(negative_types=types)[index])[1] for index in range(80)]
        for counts in (
            Counter(hard.caption_type for hard in drawn),
            Counter(hard.image_type for hard in drawn),
        ):
            assert set(counts) <= set(NEGATIVE_TYPES)
            assert all(counts[kind] >= (5 if types == NEGATIVE_TYPES else 70) for kind in types)


def test_flips_never_state_a_held_out_relation() -> None:
    plain = SceneSource(POCKET_WORLD, 0, "train", Framing(64), size=400)
    flipping = SceneSource(POCKET_WORLD, 0, "train", Framing(64, random_flip=True), size=400)
    flips = 0
    for index in range(400):
        example = flipping[index]
        flips += not torch.equal(example.image.values, plain[index].image.values)
        assert example.expression is not None
        for text in example.texts[1:]:
            for fact in facts_of(text):
                if isinstance(fact, Related):
                    relation = (fact.first.shape, fact.relation, fact.second.shape)
                    assert relation not in POCKET_WORLD.held_out_relations, text
        reference = reference_of(example.expression.text)
        if isinstance(reference, RelativeReference):
            relation = (reference.noun.shape, reference.relation, reference.landmark.shape)
            assert relation not in POCKET_WORLD.held_out_relations, example.expression.text
    assert 140 < flips < 230


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="no split 'dev'; the splits are train, val, test"):
        source(split="dev")
    with pytest.raises(ValueError, match="1 to 10000000 scenes"):
        SceneSource(POCKET_WORLD, 0, "val", Framing(64), size=RANGE + 1)
    with pytest.raises(ValueError, match="colour, relation, count, shape"):
        source(negative_types=("size",))
    with pytest.raises(IndexError, match="no example 80"):
        source()[80]
