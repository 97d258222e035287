"""One call of everything computes what the published schedule's many calls do."""

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


def both(one: Any) -> list[tuple[dict[str, float], dict[str, torch.Tensor]]]:
    """Losses and gradients of our step, and of the published one."""
    batch, share = collate([tiny_stage1.stream()[position] for position in range(3)]), torch.tensor(3.0)
    found = []
    for step in (one.losses, lambda *given: published_schedule.losses(one, *given)):
        losses = step(batch, SampleRNG(1, range(3)), share)
        one.trained.zero_grad()
        sum(one.weights[name] * value for name, value in losses.items() if name in one.weights).backward()
        gradients = {name: p.grad.clone() for name, p in one.trained.named_parameters() if p.grad is not None}
        found.append(({name: float(value.detach()) for name, value in losses.items()}, gradients))
    return found


@pytest.mark.parametrize("stage", [1, 2])
def test_the_losses_and_the_gradients_are_the_same(backbone: Backbone, stage: int, tmp_path: Path) -> None:
    one: Any = tiny_stage2.task(backbone) if stage == 2 else tiny_stage1.task(backbone, adapter={"dropout": 0.0})
    (ours, mine), (theirs, published) = both(one)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name
    assert mine.keys() >= published.keys()
    for name, gradient in published.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
