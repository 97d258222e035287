from __future__ import annotations

import pytest
import torch
from torch import nn

from dpt.pocket.optim import MasterWeights, rate


def test_the_rate_starts_and_ends_where_it_says() -> None:
    rates = [rate(step, 100, 1.0, 10, 20) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:80] == [1.0] * 71
    assert rates[99] == pytest.approx(0.05) and rate(100, 100, 1.0, 10, 20) == 0


def one_step(model: nn.Linear, weights: MasterWeights, scale: float = 1.0, **settings: float) -> torch.Tensor:
    x = torch.linspace(-1, 1, 12).view(3, 4).to(model.weight.dtype)
    (model(x).float().square().sum() * scale).backward()
    weights.take_gradients()
    options = {"learning_rate": 0.01, "clip": 1e9, "averaging": 0.9} | settings
    return weights.step(**options)


def fresh(dtype: torch.dtype = torch.float32, decay: float = 0.0) -> tuple[nn.Linear, MasterWeights]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    return model, MasterWeights(model, dtype, (0.9, 0.99), decay)


def test_in_full_precision_it_is_adamw() -> None:
    model, weights = fresh()
    torch.manual_seed(0)
    plain = nn.Linear(4, 3)
    adam = torch.optim.AdamW(plain.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(5):
        one_step(model, weights)
        x = torch.linspace(-1, 1, 12).view(3, 4)
        plain(x).square().sum().backward()
        adam.step()
        adam.zero_grad()
    torch.testing.assert_close(model.weight, plain.weight)


def test_masters_keep_what_half_precision_would_lose() -> None:
    model, weights = fresh(torch.bfloat16)
    before = weights.masters[0].clone()
    one_step(model, weights, learning_rate=1e-6)
    assert model.weight.dtype == torch.bfloat16
    assert not torch.equal(weights.masters[0], before)


def test_clipping_clips_and_decay_decays() -> None:
    model, weights = fresh()
    norm = one_step(model, weights, scale=1e4, clip=1.0)
    assert norm > 1
    assert torch.linalg.vector_norm(torch.cat([m.grad.flatten() for m in weights.masters])) <= 1.0 + 1e-5
    _, plain = fresh()
    _, decayed = fresh(decay=0.5)
    for each in (plain, decayed):
        for master in each.masters:
            master.grad = torch.zeros_like(master)
        each.step(0.1, 1.0, 0.9)
    assert torch.allclose(decayed.masters[0], plain.masters[0] * (1 - 0.1 * 0.5))
    assert torch.equal(decayed.masters[1], plain.masters[1]), "biases do not decay"


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model, weights = fresh()
    before = model.weight.clone()
    norm = one_step(model, weights, scale=float("nan"))
    assert not torch.isfinite(norm)
    assert torch.equal(model.weight, before)


def test_restored_it_goes_on_as_if_never_stopped() -> None:
    model, weights = fresh(torch.bfloat16)
    for _ in range(3):
        one_step(model, weights)
    kept = {group: {k: v.clone() for k, v in content.items()} for group, content in weights.tensors().items()}
    for _ in range(3):
        one_step(model, weights)
    again, restored = fresh(torch.bfloat16)
    restored.restore(kept)
    for _ in range(3):
        one_step(again, restored)
    for ours, theirs in zip(weights.masters + weights.average, restored.masters + restored.average, strict=True):
        assert torch.equal(ours, theirs)


def test_another_models_checkpoint_is_refused() -> None:
    _, weights = fresh()
    other = MasterWeights(nn.Sequential(nn.Linear(4, 3)), torch.float32, (0.9, 0.99), 0.0)
    with pytest.raises(ValueError, match="another model"):
        weights.restore(other.tensors())
