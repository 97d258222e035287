"""Speed-ups are applied and change results by rounding only."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpt.backbone import Backbone, open_backbone
from dpt.backbone.device import apply_speedups, compiled_blocks
from dpt.errors import UserError
from dpt.lora import LoraConfig
from tests import tiny_models, tiny_transformers
from tests.lora.test_injection import filled

BACKEND = os.environ.get("DPT_COMPILE_BACKEND", "aot_eager")
"""What --compile uses, inductor, takes minutes here; the tracing, which is where it could go wrong, is the same."""


@pytest.fixture
def backbone(tmp_path: Path) -> Backbone:
    return open_backbone(tiny_models.save(tiny_models.SD1, tmp_path), device="cpu")


def prediction_feature_and_gradient(backbone: Backbone) -> tuple[Tensor, Tensor, Tensor]:
    """A prediction, a feature, and the feature's gradient with respect to the latents."""
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    text = backbone.encode_text([tiny_models.PROMPT] * 2)
    feature, _ = backbone.features(z, torch.tensor([100, 700]), text, "up1")
    (gradient,) = torch.autograd.grad(feature.square().sum(), z)
    return backbone.predict(z, 500, text).detach(), feature.detach(), gradient


def test_default_speedups_change_nothing(backbone: Backbone) -> None:
    assert apply_speedups(backbone) == [] and compiled_blocks(backbone.unet) == 0


def test_channels_last_changes_only_the_layout(backbone: Backbone) -> None:
    before = prediction_feature_and_gradient(backbone)
    (sentence,) = apply_speedups(backbone, channels_last=True)
    assert sentence.startswith("channels_last: ")
    for part in (backbone.unet, backbone.vae):
        wide = [p for p in part.parameters() if p.ndim == 4 and 1 not in p.shape[1:]]
        assert wide and all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
    for first, second in zip(before, prediction_feature_and_gradient(backbone), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.nightly
def test_compiled_blocks_with_a_lora_compute_the_same(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_blocks = partial(backbone.unet.compile_repeated_blocks, backend=BACKEND)
    monkeypatch.setattr(backbone.unet, "compile_repeated_blocks", compile_blocks)
    monkeypatch.setattr(shutil, "which", lambda _: "a compiler")
    lora = filled(backbone, LoraConfig(rank=2))
    backbone.prepare_for_gradients()
    before = prediction_feature_and_gradient(backbone)
    with lora.disabled():
        bare = prediction_feature_and_gradient(backbone)
    (sentence,) = apply_speedups(backbone, compiled=True)
    blocks = sum(type(module).__name__ == "BasicTransformerBlock" for module in backbone.unet.modules())
    assert compiled_blocks(backbone.unet) == blocks and f"compile: {blocks} blocks" in sentence
    for first, second in zip(before, prediction_feature_and_gradient(backbone), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(before[0], bare[0], rtol=1e-3), "the LoRA does something"
    with lora.disabled():
        for first, second in zip(bare, prediction_feature_and_gradient(backbone), strict=True):
            torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_the_blocks_of_a_transformer_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers does not list the repeated blocks of Stable Diffusion 3."""
    backbone = open_backbone(tiny_transformers.save(tiny_transformers.sd3(), tmp_path), device="cpu")
    compile_blocks = partial(backbone.network.compile_repeated_blocks, backend=BACKEND)
    monkeypatch.setattr(backbone.network, "compile_repeated_blocks", compile_blocks)
    monkeypatch.setattr(shutil, "which", lambda _: "a compiler")
    z = torch.randn(2, 4, *backbone.default_latent_size, generator=torch.Generator().manual_seed(1))
    text = backbone.encode_text([tiny_models.PROMPT] * 2)
    before = backbone.predict(z, 500, text)
    (sentence,) = apply_speedups(backbone, compiled=True)
    assert compiled_blocks(backbone.network) == 3 and "3 blocks of the model (JointTransformerBlock)" in sentence
    torch.testing.assert_close(backbone.predict(z, 500, text), before, rtol=1e-4, atol=1e-5)


def test_unavailable_speedups_are_refused_in_one_sentence(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler"):
        apply_speedups(backbone, compiled=True)


def test_tf32_needs_a_gpu(backbone: Backbone) -> None:
    with pytest.warns(UserWarning, match="a CPU does not round"):
        assert apply_speedups(backbone, tf32=True) == []
