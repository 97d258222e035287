"""Injecting, merging and removing a LoRA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dpt.backbone.unet_features import PROJECTIONS, block_of, lora_targets
from dpt.errors import UserError
from dpt.lora import Lora, LoraConfig
from tests import tiny_models
from tests.tiny_models import BareUNet


@pytest.fixture
def unet() -> Any:
    torch.manual_seed(0)
    return tiny_models.unet(tiny_models.SD2_BASE).eval().requires_grad_(False)


def output(unet: Any) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    z, c = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 7, 32, generator=rng)
    with torch.no_grad():
        result: Tensor = unet(z, torch.tensor([10, 900]), encoder_hidden_states=c).sample
    return result


def filled(target: Any, config: LoraConfig | None = None) -> Lora:
    """A LoRA with nonzero weights, in a backbone or a bare UNet."""
    backbone = target if hasattr(target, "lora_targets") else BareUNet(target)
    lora = Lora(backbone, config or LoraConfig())
    rng = torch.Generator().manual_seed(2)
    lora.load({name: 0.2 * torch.randn(p.shape, generator=rng) for name, p in lora.state().items()}, "here")
    return lora


def test_every_attention_projection_has_a_lora(unet: Any) -> None:
    layers = [name for name, module in unet.named_modules() if name.endswith((".attn1", ".attn2"))]
    assert lora_targets(unet, ["all"]) == [f"{layer}.{projection}" for layer in layers for projection in PROJECTIONS]


def test_lora_has_the_published_number_of_tensors_and_values() -> None:
    """Section 1.4: on Stable Diffusion 2.1 and 1.4, at rank 4."""
    from diffusers import UNet2DConditionModel

    common = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2}
    with torch.device("meta"):
        sd2 = UNet2DConditionModel(
            **common, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
        sd1 = UNet2DConditionModel(**common, cross_attention_dim=768, attention_head_dim=8)
    for unet, values in ((sd2, 829_952), (sd1, 797_184)):
        with torch.device("meta"):
            tensors = Lora(BareUNet(unet), LoraConfig()).state()
        assert len(tensors) == 256
        assert sum(tensor.numel() for tensor in tensors.values()) == values


def test_new_lora_does_not_change_the_output(unet: Any) -> None:
    before = output(unet)
    lora = Lora(BareUNet(unet), LoraConfig())
    assert torch.equal(output(unet), before)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in lora.weights.parameters())


def test_seed_determines_the_initial_weights(unet: Any) -> None:
    torch.manual_seed(5)
    rng_state = torch.get_rng_state()
    first = {name: tensor.clone() for name, tensor in Lora(BareUNet(unet), LoraConfig(), seed=3).state().items()}
    assert torch.equal(torch.get_rng_state(), rng_state)
    unet.unload_lora()
    same_seed = Lora(BareUNet(unet), LoraConfig(), seed=3).state()
    unet.unload_lora()
    other = Lora(BareUNet(unet), LoraConfig(), seed=4).state()
    assert all(torch.equal(first[name], same_seed[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    spread = torch.cat([tensor.flatten() for name, tensor in first.items() if "lora_A" in name]).std()
    assert abs(spread - 1 / 4) < 0.02


@pytest.mark.parametrize("config", [LoraConfig(), LoraConfig(rank=3, alpha=12.0)], ids=["as published", "scaled"])
def test_merging_keeps_the_output(unet: Any, config: LoraConfig) -> None:
    bare = output(unet)
    lora = filled(unet, config)
    attached = output(unet)
    assert (attached - bare).abs().max() > 1e-3
    lora.merge()
    assert not any("lora" in name for name, _ in unet.named_modules())
    torch.testing.assert_close(output(unet), attached, atol=1e-5, rtol=1e-5)


def test_alpha_scales_the_addition(unet: Any) -> None:
    once = filled(unet, LoraConfig(rank=2, alpha=1.0))
    place = once.targets[0]
    weak = once.delta_weight(place).detach()
    once.remove()
    torch.testing.assert_close(filled(unet, LoraConfig(rank=2, alpha=4.0)).delta_weight(place).detach(), 4 * weak)


def test_disabling_and_removing_restore_the_output_bit_for_bit(unet: Any) -> None:
    before, names = output(unet), [name for name, _ in unet.named_parameters()]
    lora = filled(unet)
    with lora.disabled():
        assert torch.equal(output(unet), before)
    assert not torch.equal(output(unet), before)
    assert all(p.requires_grad for p in lora.weights.parameters())
    lora.remove()
    assert torch.equal(output(unet), before)
    assert [name for name, _ in unet.named_parameters()] == names


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (("down",), {"bottom0", "bottom1", "bottom2"}),
        (("mid", "up1"), {"mid", "up1"}),
        (("up",), {"up1", "up2", "up3"}),
    ],
)
def test_blocks_select_the_targets(unet: Any, blocks: tuple[str, ...], expected: set[str]) -> None:
    assert {block_of(place) for place in Lora(BareUNet(unet), LoraConfig(blocks=blocks)).targets} == expected


def test_invalid_configs_are_refused_in_one_sentence(unet: Any) -> None:
    with pytest.raises(UserError, match=r"no block 'top'.* valid are all, down, mid, up, bottom0"):
        Lora(BareUNet(unet), LoraConfig(blocks=("top",)))
    with pytest.raises(UserError, match="blocks up0 of this UNet have no attention layer"):
        Lora(BareUNet(unet), LoraConfig(blocks=("up0",)))
    with pytest.raises(UserError, match="rank of a LoRA must be at least 1, not 0"):
        LoraConfig(rank=0)
    with pytest.raises(UserError, match="rank of a LoRA must be at most 65,536"):
        LoraConfig(rank=10**400)
    with pytest.raises(UserError, match="alpha of a LoRA must be positive, not -1"):
        LoraConfig(alpha=-1)
    with pytest.raises(UserError, match=r"alpha of a LoRA of rank 4 must be at most 40000, not 1e\+300"):
        LoraConfig(alpha=1e300)


def test_lora_of_a_half_precision_unet_is_float32(unet: Any) -> None:
    lora = filled(unet.to(torch.bfloat16))
    assert {p.dtype for p in lora.weights.parameters()} == {torch.float32}
    z, c = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16), torch.zeros(1, 7, 32, dtype=torch.bfloat16)
    answer = unet(z, 1, encoder_hidden_states=c).sample
    assert answer.dtype == torch.bfloat16
    answer.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lora.weights.parameters())
