"""Layers that keep less for the way back compute what diffusers' own do."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from timing import kept_bytes
from torch import Tensor, nn

from dpt.backbone import open_backbone
from dpt.backbone.memory_saving_layers import (
    MemorySavingConv,
    MemorySavingGEGLU,
    MemorySavingResnet,
    use_memory_saving_layers,
)
from dpt.lora import LoraConfig
from tests import tiny_models
from tests.lora.test_injection import filled


@pytest.fixture(params=[tiny_models.SD1, tiny_models.SD2_BASE], ids=lambda one: one.name)
def unet(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return open_backbone(tiny_models.save(request.param, tmp_path), device="cpu").unet


def learnt(unet: Any, side: int = 8) -> dict[str, Tensor]:
    """What it predicts, and the gradients of that by its input and by whatever of it learns."""
    made = torch.Generator().manual_seed(1)
    z = torch.randn(2, 4, side, side, generator=made).to(unet.dtype).requires_grad_()
    states = torch.randn(2, 5, unet.config.cross_attention_dim, generator=made).to(unet.dtype)
    predicted = unet(z, torch.tensor([100, 700]), encoder_hidden_states=states).sample
    unet.zero_grad()
    predicted.float().square().sum().backward()
    found = {"z": z.grad, **{name: p.grad for name, p in unet.named_parameters() if p.requires_grad}}
    missing = [name for name, gradient in found.items() if gradient is None]
    assert not missing and bool(found["z"].any())
    return {"predicted": predicted.detach(), **{name: gradient.clone() for name, gradient in found.items()}}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        # Where a tensor lies in memory is enough to round its sums otherwise.
        scale = float(other[name].abs().max())
        eps = torch.finfo(tensor.dtype).eps
        torch.testing.assert_close(tensor, other[name], rtol=64 * eps, atol=64 * eps * scale, msg=name)


def kept(unet: Any) -> int:
    z, states = torch.randn(1, 4, 16, 16).requires_grad_(), torch.randn(1, 5, unet.config.cross_attention_dim)
    return kept_bytes(lambda: unet(z, 500, encoder_hidden_states=states).sample, (unet,))


def kinds(unet: Any) -> set[str]:
    return {type(module).__name__ for module in unet.modules()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", [8, 12, 10], ids="side {}".format)
def test_nothing_changes(unet: Any, side: int, dtype: torch.dtype) -> None:
    filled(unet, LoraConfig(rank=2))
    unet.to(dtype)
    before = learnt(unet, side)
    use_memory_saving_layers(unet)
    assert {"MemorySavingConv", "MemorySavingResnet", "MemorySavingGEGLU"} <= kinds(unet)
    assert not {"Conv2d", "ResnetBlock2D", "GEGLU"} & kinds(unet)
    same(before, learnt(unet, side))


def test_less_than_three_quarters_are_kept(unet: Any) -> None:
    before = kept(unet)
    use_memory_saving_layers(unet)
    assert kept(unet) < 0.75 * before


def test_also_where_activations_are_computed_twice(unet: Any) -> None:
    filled(unet, LoraConfig(rank=2))
    unet.train()  # without which diffusers computes nothing twice
    before = learnt(unet)
    use_memory_saving_layers(unet)
    unet.enable_gradient_checkpointing()
    same(before, learnt(unet))


def test_also_with_the_weights_laid_out_channels_last(unet: Any) -> None:
    unet.to(memory_format=torch.channels_last)
    before = learnt(unet)
    use_memory_saving_layers(unet)
    same(before, learnt(unet))


def test_weights_that_learn_get_their_gradients(unet: Any) -> None:
    unet.requires_grad_(True)
    before = learnt(unet)
    use_memory_saving_layers(unet)
    same(before, learnt(unet))


def test_a_block_that_learns_in_part_gets_its_gradients(unet: Any) -> None:
    block = unet.down_blocks[0].resnets[0]
    block.norm2.requires_grad_(True)
    block.time_emb_proj.requires_grad_(True)
    before = learnt(unet)
    use_memory_saving_layers(unet)
    same(before, learnt(unet))


def test_a_lora_of_a_gate_is_not_left_out(unet: Any) -> None:
    from peft import LoraConfig as PeftConfig

    unet.add_adapter(PeftConfig(r=2, target_modules=["ff.net.0.proj"], init_lora_weights=False))
    before = learnt(unet)
    use_memory_saving_layers(unet)
    same(before, learnt(unet))


def test_a_copy_computes_the_same(unet: Any) -> None:
    use_memory_saving_layers(unet)
    same(learnt(unet), learnt(deepcopy(unet)))


def test_names_and_weights_stay_and_twice_is_as_once(unet: Any) -> None:
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    use_memory_saving_layers(unet)
    use_memory_saving_layers(unet)
    same(before, unet.state_dict())


def test_what_is_built_otherwise_stays_as_it_is() -> None:
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
    assert not any(isinstance(one, MemorySavingConv | MemorySavingResnet | MemorySavingGEGLU) for one in others)
