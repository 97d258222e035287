from __future__ import annotations

import pytest
import torch
from diffusers.optimization import get_scheduler

from dpt.training.engine.settings import SHAPES, rate


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "constant"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_as_in_diffusers(name: str, warmup: int) -> None:
    peak, steps = 3e-4, 20
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    for step in range(steps):
        assert rate(name, step, steps, peak, warmup) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_a_constant_rate_with_a_warm_up_warms_up() -> None:
    """In diffusers it would not, and say nothing."""
    assert [rate("constant", step, 9, 1.0, 2) for step in range(4)] == [0.0, 0.5, 1.0, 1.0]
