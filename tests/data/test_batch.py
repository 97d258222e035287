from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dpt.data.example import (
    Example,
    ExampleImage,
    GroundedRegion,
    Negative,
    Negatives,
    ReferringExpression,
    collate,
)


def picture(value: float = 0.0, latent: bool = False) -> ExampleImage:
    return ExampleImage(str(value), torch.full((4 if latent else 3, 8, 8), value), latent)


def example(n_regions: int, name: str = "a") -> Example:
    regions = tuple(GroundedRegion((0.1 * (i + 1), 0.5, 0.1, 0.2), ((0, 3), (4, 5))) for i in range(n_regions))
    return Example(
        name,
        picture(),
        "y",
        weight=1.0 + n_regions,
        expression=ReferringExpression(f"r {name}", regions),
        negatives=Negatives(Negative("y-", picture(0.1), "colour"), Negative("y?", picture(0.2))),
        skipped=(f"{name} broken",) * (n_regions == 0),
    )


def test_collate_preserves_shapes_and_order() -> None:
    batch = collate([example(1, "a"), example(0, "b"), example(3, "c")])
    assert batch.expressions is not None and batch.negatives is not None and batch.negatives.random is not None
    hard, random = batch.negatives.hard, batch.negatives.random
    assert batch.captions == ["y"] * 3 and batch.weights.tolist() == [2.0, 1.0, 4.0]
    assert len(batch) == 3 and batch.ids == ["a", "b", "c"] and batch.skipped == ["b broken"]
    assert batch.images.shape == hard.images.shape == random.images.shape == (3, 3, 8, 8)
    assert hard.images.unique().tolist() == pytest.approx([0.1])
    assert batch.expressions.texts == ["r a", "r b", "r c"]
    assert batch.expressions.num_boxes == [1, 0, 3]
    assert [boxes.shape for boxes in batch.expressions.boxes_by_example()] == [(1, 4), (0, 4), (3, 4)]
    assert batch.expressions.boxes[:, 0].tolist() == pytest.approx([0.1, 0.1, 0.2, 0.3])
    assert [len(spans) for spans in batch.expressions.spans] == [1, 0, 3]
    assert batch.expressions.spans[2][1] == ((0, 3), (4, 5))
    assert hard.caption_types == ["colour"] * 3 and hard.image_types == [None] * 3


def test_batch_without_boxes_negatives_or_captions() -> None:
    empty = collate([example(0)])
    assert empty.expressions is not None and empty.expressions.boxes.shape == (0, 4)
    assert empty.expressions.boxes_by_example()[0].shape == (0, 4)
    captioned = collate([Example("a", picture(), "a caption without negatives")])
    assert captioned.captions == ["a caption without negatives"]
    assert captioned.negatives is None and captioned.expressions is None and captioned.weights.tolist() == [1.0]
    assert collate([replace(example(1), caption=None)]).captions is None


def test_batch_moves_to_a_device_completely() -> None:
    batch = collate([example(2)]).to("meta")
    assert batch.expressions is not None and batch.negatives is not None and batch.negatives.random is not None
    negatives = (batch.negatives.hard.images, batch.negatives.random.images)
    tensors = (batch.images, batch.weights, batch.expressions.boxes, *negatives)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert collate([replace(example(2), negatives=None)]).to("meta").negatives is None


def test_collate_refuses_mixed_examples() -> None:
    latent = Example("l", picture(latent=True))
    assert collate([latent]).latent
    with pytest.raises(ValueError, match="cannot mix latents with pixels"):
        collate([latent, Example("p", picture())])
    with pytest.raises(ValueError, match="cannot mix examples that have an expression"):
        collate([example(1), replace(example(1), expression=None)])
    with pytest.raises(ValueError, match="cannot mix examples that have negatives"):
        collate([example(1), replace(example(1), negatives=None)])
    with pytest.raises(ValueError, match="at least one"):
        collate([])
