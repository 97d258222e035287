"""Named features against hooks on the full forward pass, and finishing partial forwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import interpolate

from dpt.backbone import open_backbone
from dpt.backbone.unet_features import (
    block_names,
    feature_grid,
    finish_forward,
    parse_feature,
    read_feature,
    start_forward,
)
from dpt.errors import UserError
from tests import tiny_models
from tests.tiny_models import POCKET, PROMPT, SD1, SD2_BASE, TinyModel

STABLE_DIFFUSION = {"block_out_channels": [320, 640, 1280, 1280], "mid_block_type": "UNetMidBlock2DCrossAttn"}
MODELS = (SD1, SD2_BASE, POCKET)
# The UNets halve two or three times: the second and third size leave a rest on the way.
SIZES = ((8, 8), (9, 7), (12, 10))


def unet_of(model: TinyModel) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny_models.unet(model).eval().requires_grad_(False)


def other_unet() -> UNet2DConditionModel:
    """Two layers per block, attention only in the middle levels, no mid block, inputs centred."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type=None,
        block_out_channels=(8, 16, 24),
        layers_per_block=2,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=2,
        center_input_sample=True,
        time_embedding_act_fn="silu",
    ).eval()


@pytest.fixture(scope="module", params=[*MODELS, None], ids=lambda model: model.name if model else "other")
def unet(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    return other_unet() if request.param is None else unet_of(request.param)


def inputs(unet: UNet2DConditionModel, size: tuple[int, int] = (8, 8), rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    states = torch.randn(rows, 5, unet.config.cross_attention_dim)
    return torch.randn(rows, 4, *size), torch.tensor([3, 700, 41, 999][:rows]), states


def hooked(unet: UNet2DConditionModel, z: Tensor, t: Tensor, c: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Every block's output, and the UNet's own."""
    outputs: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    names = block_names(unet.config)
    blocks = {f"bottom{i}": block for i, block in enumerate(unet.down_blocks)}
    blocks |= {f"up{i}": block for i, block in enumerate(unet.up_blocks)}
    blocks |= {"mid": unet.mid_block} if unet.mid_block is not None else {}
    assert set(blocks) == set(names)
    handles = [block.register_forward_hook(remember(name)) for name, block in blocks.items()]
    output = unet(z, t, encoder_hidden_states=c).sample
    for handle in handles:
        handle.remove()
    return outputs, output


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_features_equal_those_of_the_full_forward_pass_bit_for_bit(
    unet: UNet2DConditionModel, size: tuple[int, int]
) -> None:
    z, t, c = inputs(unet, size)
    outputs, output = hooked(unet, z, t, c)
    for name, expected in outputs.items():
        actual, at = read_feature(unet, z, t, c, name)
        assert torch.equal(actual, expected), name
        assert actual.shape[1] == sum(parse_feature(unet.config, name).channels)
        assert tuple(actual.shape[2:]) == feature_grid(unet.config, name, size)
        assert torch.equal(finish_forward(unet, at), output), name
    assert torch.equal(finish_forward(unet, start_forward(unet, z, t, c)), output)


def test_timestep_may_be_a_number(unet: UNet2DConditionModel) -> None:
    z, _, c = inputs(unet)
    assert torch.equal(read_feature(unet, z, 7, c, "up0")[0], read_feature(unet, z, torch.tensor([7, 7]), c, "up0")[0])


@pytest.mark.parametrize("name", ["bottom1", "up1"])
def test_latent_gradient_equals_that_of_the_full_forward_pass(unet: UNet2DConditionModel, name: str) -> None:
    z, t, c = inputs(unet, (9, 7))
    z.requires_grad_()
    (actual,) = torch.autograd.grad(read_feature(unet, z, t, c, name)[0].square().sum(), z)
    (expected,) = torch.autograd.grad(hooked(unet, z, t, c)[0][name].square().sum(), z)
    assert actual.abs().max() > 0
    assert torch.equal(actual, expected)


def test_nothing_after_the_feature_is_computed() -> None:
    unet = unet_of(POCKET)

    def refuse(*_: Any) -> None:
        raise AssertionError("this block is not needed")

    for module in (unet.up_blocks[1], unet.up_blocks[2], unet.conv_norm_out, unet.conv_out):
        module.register_forward_pre_hook(refuse)
    read_feature(unet, *inputs(unet), "bottom0_up0")
    with pytest.raises(AssertionError):
        read_feature(unet, *inputs(unet), "up1")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_some_rows_of_a_partial_forward_can_be_finished(model: TinyModel) -> None:
    unet = unet_of(model)
    z, t, c = inputs(unet, (9, 7), rows=4)
    _, at = read_feature(unet, z, t, c, "up0")
    expected = unet(z, t, encoder_hidden_states=c).sample
    for rows in (slice(1, 3), [0, 3], torch.tensor([True, False, False, True])):
        torch.testing.assert_close(finish_forward(unet, at[rows]), expected[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_concatenated_partial_forwards_finish_together(model: TinyModel) -> None:
    unet = unet_of(model)
    z, t, c = inputs(unet, (9, 7), rows=4)
    expected = unet(z, t, encoder_hidden_states=c).sample
    first, second = (read_feature(unet, z[rows], t[rows], c[rows], "up0")[1] for rows in (slice(1), slice(1, 4)))
    torch.testing.assert_close(finish_forward(unet, first.concat(second)), expected, rtol=0, atol=1e-6)
    further = read_feature(unet, z, t, c, "up1")[1]
    with pytest.raises(ValueError, match="cannot join a forward pass after"):
        first.concat(further)


def test_gradients_reach_the_weights_through_finished_rows() -> None:
    unet = unet_of(SD1).requires_grad_(True)
    z, t, c = inputs(unet, rows=4)
    weight = unet.down_blocks[0].resnets[0].conv1.weight
    _, at = read_feature(unet, z, t, c, "up1")
    (actual,) = torch.autograd.grad(finish_forward(unet, at[:2]).square().mean(), weight)
    (expected,) = torch.autograd.grad(unet(z[:2], t[:2], encoder_hidden_states=c[:2]).sample.square().mean(), weight)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)


def test_features_include_a_lora() -> None:
    unet = unet_of(SD2_BASE)
    z, t, c = inputs(unet)
    before, _ = read_feature(unet, z, t, c, "up1")
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
    actual, _ = read_feature(unet, z, t, c, "up1")
    assert torch.equal(actual, hooked(unet, z, t, c)[0]["up1"])
    assert not torch.equal(actual, before)


def test_feature_maps_are_joined_in_the_given_order(unet: UNet2DConditionModel) -> None:
    z, t, c = inputs(unet, (9, 7))
    outputs, _ = hooked(unet, z, t, c)
    last = len(unet.down_blocks) - 1
    for parts in ((f"bottom{last}", f"bottom{last - 1}"), (f"up{last}", f"up{last - 1}"), ("up0", f"bottom{last - 2}")):
        name = "_".join(parts)
        actual, _ = read_feature(unet, z, t, c, name)
        assert torch.equal(actual, torch.cat([outputs[part] for part in parts], dim=1)), name
        assert actual.shape[1] == sum(parse_feature(unet.config, name).channels)


def test_all_feature_maps_are_resized_and_joined(unet: UNet2DConditionModel) -> None:
    z, t, c = inputs(unet, (9, 7))
    outputs, _ = hooked(unet, z, t, c)
    actual, _ = read_feature(unet, z, t, c, "all-12-6")
    expected = [interpolate(outputs[name], size=(6, 6), mode="nearest") for name in block_names(unet.config)]
    assert torch.equal(actual, torch.cat(expected, dim=1))
    assert feature_grid(unet.config, "all-12-6", (9, 7)) == (6, 6)
    assert parse_feature(unet.config, "all-12-6").fused_channels == 12


@pytest.mark.parametrize(
    ("name", "channels", "side"),
    [
        ("bottom0", 320, 32),
        ("bottom1", 640, 16),
        ("bottom2", 1280, 8),
        ("bottom3", 1280, 8),
        ("mid", 1280, 8),
        ("up0", 1280, 16),
        ("up1", 1280, 32),
        ("up2", 640, 64),
        ("up3", 320, 64),
        ("bottom2_bottom3_mid", 3840, 8),
        ("bottom1_up0", 1920, 16),
        ("bottom0_up1", 1600, 32),
        ("up3_up2", 960, 64),
    ],
)
def test_feature_shapes_equal_the_published_table(name: str, channels: int, side: int) -> None:
    assert sum(parse_feature(STABLE_DIFFUSION, name).channels) == channels
    assert feature_grid(STABLE_DIFFUSION, name, (64, 64)) == (side, side)


@pytest.mark.parametrize("name", ["up4", "Mid", "", "mid_", "all", "all-8", "all-0-8", "all-8-8-8", "up1-up2"])
def test_unknown_feature_lists_the_valid_names(name: str) -> None:
    with pytest.raises(UserError, match=r"valid are bottom0, .*, mid, up0, up1, up2, up3, .*bottom2, bottom3, mid; "):
        parse_feature(STABLE_DIFFUSION, name)


def test_joining_different_grids_lists_the_matching_ones() -> None:
    with pytest.raises(UserError, match="'bottom0_up0' differ in grid; equal are bottom0, up1; bottom1, up0; "):
        parse_feature(STABLE_DIFFUSION, "bottom0_up0")
    with pytest.raises(UserError, match="'mid_mid' names the same block twice"):
        parse_feature(STABLE_DIFFUSION, "mid_mid")


def test_unet_without_mid_block_has_no_mid_feature() -> None:
    with pytest.raises(UserError, match="no UNet feature 'mid'"):
        parse_feature(other_unet().config, "mid")


def test_unet_with_additional_inputs_is_refused() -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=2,
        num_class_embeds=3,
    )
    with pytest.raises(UserError, match="more than latents, timestep and text"):
        read_feature(unet, *inputs(unet), "mid")


def test_backbone_returns_features(tmp_path: Path) -> None:
    backbone = open_backbone(tiny_models.save(POCKET, tmp_path / "model"), device="cpu")
    condition = backbone.encode_text([PROMPT])
    z = torch.randn(1, 4, 16, 16)
    actual, _ = backbone.features(z, 10, condition, "up0")
    assert torch.equal(actual, hooked(backbone.unet, z, torch.tensor([10]), condition.states)[0]["up0"])
    assert actual.dtype == torch.float32
