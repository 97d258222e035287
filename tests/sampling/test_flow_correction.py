"""Self-correction of a rectified flow against steps computed by hand, on a tiny SD3."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dpt.adapter import Adapter
from dpt.backbone import open_backbone
from dpt.backbone.mmdit import normalise_tokens
from dpt.sampling.draw import Request, SamplingSettings, best, draw_latents, scored
from dpt.sampling.loop import denoise
from dpt.sampling.options import Correction, Guidance
from dpt.sampling.schedulers import make_scheduler
from dpt.sampling.self_correction import guided
from dpt.score.matching import Scorer
from tests import tiny_transformers
from tests.checkpoints.making import tiny_adapter

SCALE, ETA = 3.0, 20.0


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipe = tiny_transformers.sd3(with_t5=False, shift=3.0)
    return open_backbone(tiny_transformers.save(pipe, tmp_path_factory.mktemp("sd3") / "model"), device="cpu")


@pytest.fixture(scope="module")
def adapter(backbone: Any) -> Adapter:
    return tiny_adapter(backbone, "block1")


def velocity(backbone: Any, z: Tensor, sigma: float, text: Any) -> Tensor:
    t = torch.full((len(z),), 1000 * sigma)
    with torch.no_grad():
        return backbone.network(z, text.states, text.pooled, t).sample


def gradient(backbone: Any, adapter: Adapter, z: Tensor, sigma: float, text: Any) -> Tensor:
    """Through the whole network, with all the adapter's queries."""
    caught: list[Tensor] = []
    block = backbone.network.transformer_blocks[1]
    hook = block.register_forward_hook(lambda _, __, output: caught.append(output[1]))
    z, t = z.clone().requires_grad_(), torch.tensor([1000 * sigma])
    backbone.network(z, text.states, text.pooled, t)
    hook.remove()
    feature = normalise_tokens(caught[0]).transpose(1, 2).unflatten(2, backbone.feature_grid("block1"))
    vectors = adapter(feature, t).matching[0]
    score = cosine_similarity(vectors, text.match, dim=-1).max()
    return torch.autograd.grad(score, z)[0]


@pytest.mark.parametrize("target", ["state", "input", "fused"])
def test_each_target_moves_what_it_says(target: str, backbone: Any, adapter: Adapter) -> None:
    """z' = z + (s' - s) v, with v guided, and z, the input or the next z moved by eta g."""
    text, negative = backbone.encode_text([tiny_transformers.PROMPTS[0]]), backbone.encode_text(["blue"])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    scheduler = make_scheduler("euler", backbone.scheduler_config)
    scheduler.set_timesteps(2)
    sigmas = scheduler.sigmas.tolist()
    assert len(sigmas) == 3 and sigmas[0] == 1 and sigmas[-1] == 0

    z, moved_after = noise, torch.zeros(())
    for sigma, following in pairwise(sigmas):
        z = z + moved_after
        shift = ETA * gradient(backbone, adapter, z, sigma, text)
        moved_after = shift if target == "fused" and following else torch.zeros(())
        z = z + shift if target == "state" else z
        seen = z + shift if target == "input" else z
        uncond, cond = velocity(backbone, z, sigma, negative), velocity(backbone, seen, sigma, text)
        z = z + (following - sigma) * (uncond + SCALE * (cond - uncond))

    def run(correction: Correction) -> Tensor:
        denoiser, hooks = guided(backbone, text, negative, Guidance(SCALE), correction, Scorer(backbone, adapter))
        return denoise(denoiser, make_scheduler("euler", backbone.scheduler_config), noise, 2, hooks=hooks)

    corrected = run(Correction(ETA, target))
    torch.testing.assert_close(corrected, z, rtol=0, atol=5e-5)
    assert (corrected - run(Correction())).abs().max() > 1e-3


def test_the_relative_norm_is_that_of_the_predicted_noise(backbone: Any, adapter: Adapter) -> None:
    text, z = backbone.encode_text([tiny_transformers.PROMPTS[0]]), torch.randn(1, 4, 8, 8)
    v = velocity(backbone, z, 0.7, text)
    noise = z + 0.3 * v
    _, (correction,) = guided(
        backbone, text, text, Guidance(1.0), Correction(0.5, "input", "relative"), Scorer(backbone, adapter)
    )
    score = Scorer(backbone, adapter).score_gradient(z, torch.tensor(700.0), text)
    shift = correction._shift(score, z, torch.tensor(700.0))
    torch.testing.assert_close(shift.norm(), 0.5 * noise.norm(), rtol=1e-4, atol=0)
    torch.testing.assert_close(score.gradient, gradient(backbone, adapter, z, 0.7, text), rtol=1e-3, atol=1e-6)


def test_the_best_of_several_is_the_one_that_matches_best(backbone: Any, adapter: Adapter) -> None:
    requests = [Request(tiny_transformers.PROMPTS[0], 0, k) for k in range(3)]
    settings = SamplingSettings(steps=2, guidance_scale=SCALE)
    candidates = list(scored(draw_latents(backbone, requests, settings), Scorer(backbone, adapter)))
    (kept,) = best(candidates, 1)
    assert kept.score == max(c.score for c in candidates) and len({c.score for c in candidates}) == 3
    assert kept.decode(backbone).shape == (3, 16, 16)
