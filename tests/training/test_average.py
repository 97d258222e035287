"""The average of what is trained: what it follows, that it is kept, and that it resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dpt.training.engine.optim import ExponentialMovingAverage
from tests.training.toy import Line, loop, same, tensors


def test_it_follows_the_steps_that_were_applied() -> None:
    p = nn.Parameter(torch.zeros(3))
    average = ExponentialMovingAverage({"p": p}, decay=0.75)
    p.data.fill_(4.0)
    average.follow(torch.tensor(False))
    assert average.tensors["p"].tolist() == [1.0] * 3
    average.follow(torch.tensor(True))
    assert average.tensors["p"].tolist() == [1.0] * 3
    average.follow(torch.tensor(False))
    assert average.tensors["p"].tolist() == [1.75] * 3
    with average.in_place():
        assert p.tolist() == [1.75] * 3
    assert p.tolist() == [4.0] * 3


def test_a_run_with_an_average_learns_the_same(tmp_path: Path) -> None:
    loop(tmp_path / "without", Line()).run()
    loop(tmp_path / "with", Line(), ema_decay=0.9).run()
    without, kept = tensors(tmp_path / "without"), tensors(tmp_path / "with")
    assert same({name: kept[name] for name in without if not name.startswith("meters")},
                {name: value for name, value in without.items() if not name.startswith("meters")})  # fmt: skip
    averaged = {name for name in kept if name.startswith("average/")}
    assert len(averaged) == 4
    assert all(not torch.equal(kept[name], kept[name.replace("average", "weights")]) for name in averaged)


@pytest.mark.parametrize("stop", [3, 8])
def test_it_resumes_bit_for_bit(tmp_path: Path, stop: int) -> None:
    loop(tmp_path / "whole", Line(), ema_decay=0.9).run()
    loop(tmp_path / "cut", Line(), ema_decay=0.9, max_train_steps=stop).run()
    loop(tmp_path / "cut", Line(), ema_decay=0.9).run()
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "cut"))
