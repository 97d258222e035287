"""A transformer with rectified flow works through the backbone protocol alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dpt.adapter import Adapter, config_for
from dpt.backbone import Condition
from dpt.lora import Lora, LoraConfig
from dpt.objectives.losses import denoising_loss, match_score
from dpt.sampling.guidance import classifier_free
from dpt.sampling.options import Correction, Guidance, Interval
from dpt.sampling.self_correction import guided
from dpt.score.matching import Scorer
from tests.backbone.toy_mmdit import ToyMMDiT

T = torch.tensor([700, 200])


@pytest.fixture
def backbone() -> Any:
    return ToyMMDiT()


@pytest.fixture
def adapter(backbone: Any) -> Adapter:
    torch.manual_seed(1)
    small = {
        "hidden_dim": 16,
        "nheads": 2,
        "dim_feedforward": 16,
        "num_queries_rec": 2,
        "text_encoder_type": "backbone",
    }
    return Adapter(config_for(backbone, "block1", backbone.text_width, **small)).eval()


def latents() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def test_partial_forward_finishes_to_the_prediction(backbone: Any) -> None:
    condition = backbone.encode_text(["a cat", "a dog"])
    features, partial = backbone.features(latents(), T, condition, "block1")
    assert features.shape == (2, 16, *backbone.feature_grid("block1"))
    torch.testing.assert_close(backbone.finish(partial), backbone.predict(latents(), T, condition), rtol=0, atol=1e-6)
    other = backbone.predict(latents(), T, Condition(condition.states, condition.match, -condition.pooled))
    assert (other - backbone.predict(latents(), T, condition)).abs().max() > 1e-4, "pooled is part of the condition"


def test_adapter_score_has_a_gradient(backbone: Any, adapter: Adapter) -> None:
    condition, scorer = backbone.encode_text(["a cat", "a dog"]), Scorer(backbone, adapter)
    z = latents().requires_grad_()
    vectors = adapter.match(backbone.features(z, T, condition, "block1")[0], T)
    (expected,) = torch.autograd.grad(match_score(vectors, condition.match).sum(), z)
    assert expected.abs().max() > 0
    torch.testing.assert_close(scorer.score_gradient(latents(), T, condition).gradient, expected)


@pytest.mark.parametrize("target", ["state", "input", "fused"])
def test_guidance_and_correction_use_the_whole_condition(target: str, backbone: Any, adapter: Adapter) -> None:
    condition, negative = backbone.encode_text(["a cat"]), backbone.encode_text([""])
    z, t = latents()[:1], torch.tensor(700)
    plain = classifier_free(backbone.predict, condition, negative, 3.0)(z, t)
    uncond, cond = (backbone.predict(z, t, c) for c in (negative, condition))
    torch.testing.assert_close(plain, uncond + 3 * (cond - uncond), rtol=1e-4, atol=1e-5)
    correction = Correction(1.0, target, "rms", Interval(0, 0.5))
    denoiser, _ = guided(backbone, condition, negative, Guidance(3.0), correction, Scorer(backbone, adapter))
    torch.testing.assert_close(denoiser(z, t), plain, rtol=1e-4, atol=1e-5)  # no step is due outside the loop


def test_lora_learns_by_the_denoising_loss(backbone: Any) -> None:
    condition, noise = backbone.encode_text(["a cat", "a dog"]), torch.randn(2, 4, 8, 8)
    z_t, target = backbone.noise.add_noise(latents(), noise, T), backbone.noise.target(latents(), noise, T)
    torch.testing.assert_close(backbone.noise.x0(z_t, target, T), latents(), rtol=0, atol=1e-5)
    torch.testing.assert_close(backbone.noise.eps(z_t, target, T), noise, rtol=0, atol=1e-5)
    before = backbone.predict(z_t, T, condition)
    lora = Lora(backbone, LoraConfig(rank=2))
    torch.testing.assert_close(backbone.predict(z_t, T, condition), before)
    optimizer = torch.optim.SGD(lora.weights.parameters(), 1.0)
    losses = []
    for _ in range(4):
        loss = denoising_loss(backbone.predict(z_t, T, condition), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] and {backbone.block_of(name) for name in lora.targets} == set(backbone.blocks())
