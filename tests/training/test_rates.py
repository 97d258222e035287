from __future__ import annotations

import pytest
import torch
from diffusers.optimization import get_scheduler

from dpt.training.engine.settings import SHAPES, TrainSettings, learning_rate


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "constant"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_schedules_equal_those_of_diffusers(name: str, warmup: int) -> None:
    peak, steps = 3e-4, 20
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    for step in range(steps):
        assert learning_rate(name, step, steps, peak, warmup) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_constant_schedule_applies_the_warmup() -> None:
    """diffusers ignores the warm-up silently."""
    assert [learning_rate("constant", step, 9, 1.0, 2) for step in range(4)] == [0.0, 0.5, 1.0, 1.0]


def test_learning_rate_decays_to_zero_over_the_last_steps() -> None:
    settings = TrainSettings(100, learning_rate=1.0, lr_warmup_steps=10, lr_decay_steps=20)
    rates = [settings.learning_rate_at(step) for step in range(101)]
    assert rates[:11] == pytest.approx([step / 10 for step in range(11)])
    assert rates[10:81] == [1.0] * 71
    assert rates[99] == pytest.approx(0.05) and rates[100] == 0
