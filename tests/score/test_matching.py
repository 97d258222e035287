"""The matching score of noisy latents, and its gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from dpt.backbone import Backbone, open_backbone
from dpt.score.matching import CLEAN_NOISE_LEVELS, Scorer, frozen
from tests import tiny_models
from tests.checkpoints.making import SCALED, tiny_adapter
from tests.lora.test_injection import filled
from tests.sampling import by_hand
from tests.tiny_models import PROMPT, SD1

TEXTS = [PROMPT, "two green stars"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(SD1, tmp_path_factory.mktemp("sd1") / "model")


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return open_backbone(folder, device="cpu")


def latents(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layers", [1, 2])
def test_score_and_gradient_follow_the_formula(layers: int, backbone: Backbone) -> None:
    adapter, text, t = tiny_adapter(backbone, dec_layers=layers), backbone.encode_text(TEXTS), torch.tensor(300)
    expected, gradient = by_hand.score_gradient(backbone, adapter, latents(), t, text)
    result = Scorer(backbone, adapter).score_gradient(latents(), t, text)
    torch.testing.assert_close(result.score, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.gradient, gradient, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(Scorer(backbone, adapter).score(latents(), t, text), expected, rtol=0, atol=1e-6)


def test_the_partial_forward_finishes_to_the_prediction(backbone: Backbone) -> None:
    text, t = backbone.encode_text(TEXTS), torch.tensor(300)
    result = Scorer(backbone, tiny_adapter(backbone)).score_gradient(latents(), t, text)
    whole = backbone.predict(latents(), t, text)
    torch.testing.assert_close(backbone.finish(result.partial), whole, rtol=0, atol=1e-6)
    assert not backbone.finish(result.partial).requires_grad


def test_parameters_get_no_gradient_and_keep_requires_grad_and_train_mode(backbone: Backbone) -> None:
    filled(backbone, SCALED)
    adapter = tiny_adapter(backbone).train()
    trained = [p for part in (adapter, backbone.unet) for p in part.parameters() if p.requires_grad]
    assert len(trained) > len(list(adapter.parameters()))
    Scorer(backbone, adapter).score_gradient(latents(), torch.tensor(5), backbone.encode_text(TEXTS))
    assert all(p.requires_grad for p in trained)
    assert all(p.grad is None for part in (adapter, backbone.unet) for p in part.parameters())
    assert adapter.training
    with frozen(adapter, backbone.unet):
        assert not any(p.requires_grad for part in (adapter, backbone.unet) for p in part.parameters())
        assert not any(part.training for part in adapter.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_gradients_do_not_underflow_in_half_precision(dtype: torch.dtype, backbone: Backbone) -> None:
    """At the smallest float16 values, 6e-8, the cosine would be 0.8 without scaling."""
    adapter, text, t = tiny_adapter(backbone), backbone.encode_text(TEXTS), torch.tensor(300)
    with torch.no_grad():
        adapter.input_proj.weight.mul_(1e-4)
    full = Scorer(backbone, adapter).score_gradient(latents(), t, text).gradient
    assert 0 < full.abs().max() < 1e-6
    backbone.unet.to(dtype)
    half = Scorer(backbone, adapter).score_gradient(latents(), t, text).gradient
    assert half.dtype == torch.float32
    assert cosine_similarity(1e6 * half.flatten(1), 1e6 * full.flatten(1)).min() > 0.98


def test_clean_score_is_the_mean_over_noise_levels_with_fixed_noise(backbone: Backbone) -> None:
    text, scorer = backbone.encode_text(TEXTS), Scorer(backbone, tiny_adapter(backbone))
    together = scorer.clean_score(latents(), text)
    assert torch.equal(together, scorer.clean_score(latents(), text))
    alone = torch.cat([scorer.clean_score(latents()[[row]], text[[row]]) for row in range(2)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    apart = [scorer.clean_score(latents(), text, [level]) for level in CLEAN_NOISE_LEVELS]
    torch.testing.assert_close(torch.stack(apart).mean(dim=0), together)
    assert len({float(scores[0]) for scores in apart}) == len(CLEAN_NOISE_LEVELS)


def test_x0_and_eps_invert_the_prediction_target(backbone: Backbone) -> None:
    clean, noise = latents(1), latents(2)
    for kind in ("epsilon", "v_prediction", "sample"):
        backbone.noise.prediction_type = kind
        for t in (0, 500, 999):
            at = torch.full((2,), t)
            z = backbone.noise.add_noise(clean, noise, at)
            for timestep in (at, at[0]):
                output = backbone.noise.target(clean, noise, at)
                parts = backbone.noise.x0(z, output, timestep), backbone.noise.eps(z, output, timestep)
                torch.testing.assert_close(parts, (clean, noise), rtol=0, atol=1e-3)
