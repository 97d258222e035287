"""`--use_8bit_adam`: refused where it is not supported, otherwise saved, resumed and skipped like plain AdamW."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dpt.errors import UserError
from dpt.training.engine.optim import Update, require_eight_bit
from tests.training import fake_bitsandbytes
from tests.training.toy import Line, loop, same, settings, tensors


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_bitsandbytes.install(monkeypatch)


def test_eight_bit_adam_needs_a_gpu(installed: None) -> None:
    with pytest.raises(UserError, match="runs on CUDA devices only, and this run is on cpu"):
        require_eight_bit(torch.device("cpu"))
    require_eight_bit(torch.device("cuda"))


def test_eight_bit_adam_needs_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"needs bitsandbytes, which cannot be imported \(.+\): it is in req"):
        require_eight_bit(torch.device("cuda"))


def test_bitsandbytes_is_imported_only_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert Update(Line().parameter_groups(), settings()).bytes_per_parameter == 16


def test_options_are_passed_to_the_eight_bit_optimizer(installed: None) -> None:
    update = Update(Line().parameter_groups(), settings(use_8bit_adam=True, adam_beta1=0.5, adam_epsilon=0.1))
    assert isinstance(update.adam, fake_bitsandbytes.AdamW8bit)
    group = update.adam.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.999), 0.1, 0.01)
    assert update.bytes_per_parameter == 10


def test_eight_bit_state_resumes_bit_for_bit(installed: None, tmp_path: Path) -> None:
    loop(tmp_path / "whole", use_8bit_adam=True).run()
    loop(tmp_path / "parts", use_8bit_adam=True, max_train_steps=4).run()
    loop(tmp_path / "parts", use_8bit_adam=True).run()
    whole = tensors(tmp_path / "whole")
    assert same(whole, tensors(tmp_path / "parts"))
    assert whole["moments/0.weight|state1"].dtype == torch.uint8 and int(whole["moments/0.weight|step"]) == 12
    loop(tmp_path / "parts", use_8bit_adam=True, max_train_steps=16).run(reset_optimizer=True)
    assert int(tensors(tmp_path / "parts", 16)["moments/0.weight|step"]) == 4


def test_non_finite_step_changes_nothing(installed: None) -> None:
    task = Line()
    update = Update(task.parameter_groups(), settings(use_8bit_adam=True))

    def step(size: float, bad: bool = False) -> dict[str, torch.Tensor]:
        for p in task.trained.parameters():
            p.grad = torch.full_like(p, size)
        update.apply(0, torch.tensor(bad))
        return {f"{group}/{name}": value.detach().clone() for group, content in update.tensors().items()
                for name, value in content.items()}  # fmt: skip

    first = step(1.0)
    assert same(first, step(float("nan"))) and same(first, step(1.0, bad=True))
    assert not same(first, step(1.0))
