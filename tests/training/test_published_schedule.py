"""One batched step computes the same as the many calls of the published schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import published_schedule
import pytest
import torch

from dpt.backbone import Backbone, open_backbone
from dpt.backbone.rng import SampleRNG
from dpt.data.example import collate
from tests.training import tiny_stage1, tiny_stage2


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return open_backbone(tiny_stage1.model(tmp_path_factory.mktemp("model")), device="cpu")


def losses_and_gradients(task: Any) -> list[tuple[dict[str, float], dict[str, torch.Tensor]]]:
    """Losses and gradients of our step, and of the published one."""
    batch, num_boxes = collate([tiny_stage1.stream()[position] for position in range(3)]), torch.tensor(3.0)
    results = []
    for step in (task.losses, lambda *arguments: published_schedule.losses(task, *arguments)):
        losses = step(batch, SampleRNG(1, range(3)), num_boxes)
        task.trained.zero_grad()
        sum(task.weights[name] * value for name, value in losses.items() if name in task.weights).backward()
        gradients = {name: p.grad.clone() for name, p in task.trained.named_parameters() if p.grad is not None}
        results.append(({name: float(value.detach()) for name, value in losses.items()}, gradients))
    return results


@pytest.mark.parametrize("stage", [1, 2])
def test_losses_and_gradients_equal_the_published_schedule(backbone: Backbone, stage: int, tmp_path: Path) -> None:
    task: Any = tiny_stage2.task(backbone) if stage == 2 else tiny_stage1.task(backbone, adapter={"dropout": 0.0})
    (our_losses, our_gradients), (published_losses, published_gradients) = losses_and_gradients(task)
    assert our_losses.keys() == published_losses.keys()
    for name, value in our_losses.items():
        assert value == pytest.approx(published_losses[name], rel=1e-5, abs=1e-5), name
    assert our_gradients.keys() >= published_gradients.keys()
    for name, gradient in published_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
