from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dpt.data.example import (
    EveryNth,
    Example,
    ExampleImage,
    GroundedRegion,
    MatchingExample,
    ReferringExpression,
    collate,
)
from dpt.data.images import Framing
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import POCKET_WORLD


def picture(value: float = 0.0, latent: bool = False) -> ExampleImage:
    return ExampleImage(str(value), torch.full((4 if latent else 3, 8, 8), value), latent)


def example(n_regions: int, name: str = "a") -> Example:
    regions = tuple(GroundedRegion((0.1 * (i + 1), 0.5, 0.1, 0.2), ((0, 3), (4, 5))) for i in range(n_regions))
    match = MatchingExample("y", "y-", "y?", picture(0.1), picture(0.2), "colour", None)
    return Example(
        name, picture(), ReferringExpression(f"r {name}", regions), match, (f"{name} broken",) * (n_regions == 0)
    )


def test_shapes_and_order() -> None:
    batch = collate([example(1, "a"), example(0, "b"), example(3, "c")])
    assert batch.expressions is not None and batch.matching is not None
    assert len(batch) == 3 and batch.ids == ["a", "b", "c"] and batch.skipped == ["b broken"]
    assert batch.images.shape == batch.matching.hard_images.shape == batch.matching.random_images.shape == (3, 3, 8, 8)
    assert batch.matching.hard_images.unique().tolist() == pytest.approx([0.1])
    assert batch.expressions.texts == ["r a", "r b", "r c"]
    assert batch.expressions.counts == [1, 0, 3]
    assert [boxes.shape for boxes in batch.expressions.boxes_by_example()] == [(1, 4), (0, 4), (3, 4)]
    assert batch.expressions.boxes[:, 0].tolist() == pytest.approx([0.1, 0.1, 0.2, 0.3])
    assert [len(spans) for spans in batch.expressions.spans] == [1, 0, 3]
    assert batch.expressions.spans[2][1] == ((0, 3), (4, 5))
    assert batch.matching.hard_caption_types == ["colour"] * 3 and batch.matching.hard_image_types == [None] * 3


def test_a_batch_without_any_box_and_one_of_a_single_part() -> None:
    empty = collate([example(0)])
    assert empty.expressions is not None and empty.expressions.boxes.shape == (0, 4)
    assert empty.expressions.boxes_by_example()[0].shape == (0, 4)
    assert collate([replace(example(1), matching=None)]).matching is None
    assert collate([replace(example(1), expression=None)]).expressions is None


def test_it_moves_as_a_whole() -> None:
    batch = collate([example(2)]).to("meta")
    assert batch.expressions is not None and batch.matching is not None
    tensors = (batch.images, batch.expressions.boxes, batch.matching.hard_images, batch.matching.random_images)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert collate([replace(example(2), matching=None)]).to("meta").matching is None


def test_what_does_not_go_together() -> None:
    latent = Example("l", picture(latent=True))
    assert collate([latent]).latent
    with pytest.raises(ValueError, match="cannot mix latents with pixels"):
        collate([latent, Example("p", picture())])
    with pytest.raises(ValueError, match="cannot mix examples that have an expression"):
        collate([example(1), replace(example(1), expression=None)])
    with pytest.raises(ValueError, match="at least one"):
        collate([])


def test_every_nth() -> None:
    source = SceneSource(POCKET_WORLD, 0, "val", Framing(64), size=9)
    thin = EveryNth(source, 4)
    assert [thin[i].id for i in range(len(thin))] == [source[i].id for i in (0, 4, 8)]
    with pytest.raises(ValueError):
        EveryNth(source, 0)
