"""Masks of boxes: without a model, by the oracle, by SAM and SAM 2."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from dpt.claims.facts import Box
from dpt.data.scenes.render import coverage, render
from dpt.data.scenes.world import Scene, SceneObject
from dpt.detect.masks import OracleSegmenter, SamSegmenter, box_mask, dilated, open_sam, open_segmenter
from dpt.errors import UserError

DECODER = {"hidden_size": 8, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 16}


def sam_config() -> SamConfig:
    vision = SamVisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        output_channels=8,
        num_pos_feats=4,
        window_size=4,
        global_attn_indexes=[0],
        mlp_dim=16,
    )
    prompts = SamPromptEncoderConfig(hidden_size=8, image_size=64, patch_size=8, mask_input_channels=4)
    return SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompts.to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(**DECODER).to_dict(),
    )


def sam2_config() -> Sam2Config:
    hiera = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = Sam2VisionConfig(
        backbone_config=hiera.to_dict(),
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=8,
    )
    prompts = Sam2PromptEncoderConfig(hidden_size=8, image_size=64, patch_size=16, mask_input_channels=4)
    return Sam2Config(
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompts.to_dict(),
        mask_decoder_config=Sam2MaskDecoderConfig(**DECODER).to_dict(),
    )


BOXES = [Box(5, 5, 30, 30), Box(30, 8, 58, 36)]


@pytest.mark.parametrize("version", [1, 2])
def test_sam_models_are_opened_and_segment_any_size(version: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = SamModel(sam_config()) if version == 1 else Sam2Model(sam2_config())
    model.save_pretrained(tmp_path)
    segmenter = open_segmenter(str(tmp_path))
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    masks = segmenter.masks(image, BOXES)
    assert [mask.shape for mask in masks] == [(40, 60)] * 2
    assert all(mask.any() for mask in masks)
    assert all(np.array_equal(a, b) for a, b in zip(masks, open_sam(str(tmp_path)).masks(image, BOXES), strict=True))
    assert segmenter.masks(image, []) == []
    assert tmp_path.name in segmenter.identity


class ThreeMasks:
    """Answers with three fixed masks per box and their estimated quality."""

    device = torch.device("cpu")

    def __init__(self, scores: list[float], masks: torch.Tensor) -> None:
        self.config = SimpleNamespace(prompt_encoder_config=SimpleNamespace(image_size=64))
        self.scores, self.logits, self.boxes = scores, masks, torch.zeros(0)

    def __call__(self, pixel_values: torch.Tensor, input_boxes: torch.Tensor, multimask_output: bool) -> Any:
        assert multimask_output
        assert pixel_values.shape == (1, 3, 64, 64)
        self.boxes = input_boxes
        n = input_boxes.shape[1]
        return SimpleNamespace(
            iou_scores=torch.tensor([[self.scores] * n]), pred_masks=self.logits.expand(1, n, 3, 16, 16)
        )


def test_the_best_of_three_masks_is_taken_not_their_union() -> None:
    logits = torch.full((3, 16, 16), -5.0)
    logits[0, 2:4, 2:4], logits[1, 2:8, 2:8], logits[2] = 5.0, 5.0, 5.0
    model = ThreeMasks([0.2, 0.9, 0.5], logits)
    (mask,) = SamSegmenter(model, "stub", stretched=False).masks(np.zeros((64, 64, 3), np.uint8), [Box(8, 8, 32, 32)])
    assert abs(mask.sum() - 24 * 24) <= 2 * 24
    assert mask[20, 20]
    assert not mask[40, 40]


def test_boxes_are_scaled_with_the_image() -> None:
    for stretched, expected in ((False, [16, 8, 32, 24]), (True, [16, 16, 32, 48])):
        model = ThreeMasks([1, 0, 0], torch.ones(3, 16, 16))
        SamSegmenter(model, "stub", stretched).masks(np.zeros((16, 32, 3), np.uint8), [Box(8, 4, 16, 12)])
        assert model.boxes[0, 0].tolist() == expected


def test_an_empty_mask_falls_back_to_the_box_and_nan_is_refused() -> None:
    image, box = np.zeros((64, 64, 3), np.uint8), Box(8, 8, 32, 32)
    empty = SamSegmenter(ThreeMasks([1, 0, 0], torch.full((3, 16, 16), -1.0)), "stub", stretched=False)
    assert np.array_equal(empty.masks(image, [box])[0], box_mask(box, 64, 64))
    broken = SamSegmenter(ThreeMasks([1, 0, 0], torch.full((3, 16, 16), float("nan"))), "stub", stretched=False)
    with pytest.raises(UserError, match="NaN"):
        broken.masks(image, [box])


def test_boxes_and_ellipses_need_no_model() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    box, ellipse = (open_segmenter(name).masks(image, [Box(10, 10, 30, 20)])[0] for name in ("box", "ellipse"))
    assert box.sum() == 200
    assert ellipse.sum() == pytest.approx(np.pi * 50, rel=0.05)
    assert not (ellipse & ~box).any()
    assert open_segmenter("ellipse").masks(image, [Box(5.2, 5.2, 5.4, 5.4)])[0].sum() == 1  # never empty
    with pytest.raises(UserError, match="there is no model folder"):
        open_segmenter("nothing-of-this-name/at-all/x")


def test_the_oracle_segments_rendered_objects_and_leaves_their_neighbours_out() -> None:
    things = (
        SceneObject("circle", "red", "large", Box(4, 10, 25, 31)),
        SceneObject("square", "blue", "large", Box(28, 10, 49, 31)),
    )
    image = render(Scene(things, "white"))
    masks = OracleSegmenter().masks(image, [thing.box for thing in things])
    for mask, thing in zip(masks, things, strict=True):
        shape = coverage(thing.shape, thing.box, slice(0, 64), slice(0, 64)) > 0.05
        assert not (shape & ~mask).any()
        assert not (mask & ~dilated(shape, 4)).any()
    assert not (masks[0] & masks[1]).any()
    nothing = Box(2, 45, 20, 60)
    assert np.array_equal(OracleSegmenter().masks(image, [nothing])[0], box_mask(nothing, 64, 64))
