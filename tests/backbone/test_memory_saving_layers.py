"""Layers that save less for the backward pass compute the same as diffusers' layers."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from timing import kept_bytes
from torch import Tensor, nn

from dpt.backbone import open_backbone
from dpt.backbone.memory import MemorySavingConv, MemorySavingGEGLU, MemorySavingResnet, use_memory_saving_layers
from dpt.lora import LoraConfig
from tests import tiny_models
from tests.lora.test_injection import filled


@pytest.fixture(params=[tiny_models.SD1, tiny_models.SD2_BASE], ids=lambda model: model.name)
def unet(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return open_backbone(tiny_models.save(request.param, tmp_path), device="cpu").unet


def output_and_gradients(unet: Any, side: int = 8) -> dict[str, Tensor]:
    """The prediction, and its gradients with respect to the input and the trainable weights."""
    made = torch.Generator().manual_seed(1)
    z = torch.randn(2, 4, side, side, generator=made).to(unet.dtype).requires_grad_()
    states = torch.randn(2, 5, unet.config.cross_attention_dim, generator=made).to(unet.dtype)
    predicted = unet(z, torch.tensor([100, 700]), encoder_hidden_states=states).sample
    unet.zero_grad()
    predicted.float().square().sum().backward()
    actual = {"z": z.grad, **{name: p.grad for name, p in unet.named_parameters() if p.requires_grad}}
    missing = [name for name, gradient in actual.items() if gradient is None]
    assert not missing and bool(actual["z"].any())
    return {"predicted": predicted.detach(), **{name: gradient.clone() for name, gradient in actual.items()}}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        # Where a tensor lies in memory is enough to round its sums otherwise.
        scale = float(second[name].abs().max())
        eps = torch.finfo(tensor.dtype).eps
        torch.testing.assert_close(tensor, second[name], rtol=64 * eps, atol=64 * eps * scale, msg=name)


def saved_bytes(unet: Any) -> int:
    z, states = torch.randn(1, 4, 16, 16).requires_grad_(), torch.randn(1, 5, unet.config.cross_attention_dim)
    return kept_bytes(lambda: unet(z, 500, encoder_hidden_states=states).sample, (unet,))


def kinds(unet: Any) -> set[str]:
    return {type(module).__name__ for module in unet.modules()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", [8, 12, 10], ids="side {}".format)
def test_outputs_and_gradients_are_the_same(unet: Any, side: int, dtype: torch.dtype) -> None:
    filled(unet, LoraConfig(rank=2))
    unet.to(dtype)
    before = output_and_gradients(unet, side)
    use_memory_saving_layers(unet)
    assert {"MemorySavingConv", "MemorySavingResnet", "MemorySavingGEGLU"} <= kinds(unet)
    assert not {"Conv2d", "ResnetBlock2D", "GEGLU"} & kinds(unet)
    assert_same(before, output_and_gradients(unet, side))


def test_less_than_three_quarters_of_the_memory_is_saved_for_backward(unet: Any) -> None:
    before = saved_bytes(unet)
    use_memory_saving_layers(unet)
    assert saved_bytes(unet) < 0.75 * before


def test_outputs_are_equal_with_gradient_checkpointing(unet: Any) -> None:
    filled(unet, LoraConfig(rank=2))
    unet.train()  # without which diffusers computes nothing twice
    before = output_and_gradients(unet)
    use_memory_saving_layers(unet)
    unet.enable_gradient_checkpointing()
    assert_same(before, output_and_gradients(unet))


def test_outputs_are_equal_with_channels_last(unet: Any) -> None:
    unet.to(memory_format=torch.channels_last)
    before = output_and_gradients(unet)
    use_memory_saving_layers(unet)
    assert_same(before, output_and_gradients(unet))


def test_trainable_weights_get_their_gradients(unet: Any) -> None:
    unet.requires_grad_(True)
    before = output_and_gradients(unet)
    use_memory_saving_layers(unet)
    assert_same(before, output_and_gradients(unet))


def test_partly_trainable_block_gets_its_gradients(unet: Any) -> None:
    block = unet.down_blocks[0].resnets[0]
    block.norm2.requires_grad_(True)
    block.time_emb_proj.requires_grad_(True)
    before = output_and_gradients(unet)
    use_memory_saving_layers(unet)
    assert_same(before, output_and_gradients(unet))


def test_lora_in_a_geglu_is_applied(unet: Any) -> None:
    from peft import LoraConfig as PeftConfig

    unet.add_adapter(PeftConfig(r=2, target_modules=["ff.net.0.proj"], init_lora_weights=False))
    before = output_and_gradients(unet)
    use_memory_saving_layers(unet)
    assert_same(before, output_and_gradients(unet))


def test_deep_copy_computes_the_same(unet: Any) -> None:
    use_memory_saving_layers(unet)
    assert_same(output_and_gradients(unet), output_and_gradients(deepcopy(unet)))


def test_replacement_keeps_names_and_weights_and_is_idempotent(unet: Any) -> None:
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    use_memory_saving_layers(unet)
    use_memory_saving_layers(unet)
    assert_same(before, unet.state_dict())


def test_unknown_layers_are_not_replaced() -> None:
    from diffusers.models.resnet import ResnetBlock2D

    shape = {"in_channels": 8, "temb_channels": 8, "groups": 2}
    others: list[nn.Module] = [
        ResnetBlock2D(**shape, time_embedding_norm="scale_shift"),
        ResnetBlock2D(**shape, non_linearity="gelu"),
        ResnetBlock2D(**shape, down=True),
        ResnetBlock2D(**shape, skip_time_act=True),
        ResnetBlock2D(in_channels=8, temb_channels=None, groups=2),  # type: ignore[arg-type]
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv1d(4, 4, 3),
        nn.Linear(4, 4),
    ]
    use_memory_saving_layers(nn.ModuleList(others))
    assert not any(isinstance(layer, MemorySavingConv | MemorySavingResnet | MemorySavingGEGLU) for layer in others)
