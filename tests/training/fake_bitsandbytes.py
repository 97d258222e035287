"""A stand-in for bitsandbytes, which needs a GPU. Its AdamW8bit has the state of the real one.

That is a count which is an int, moments of 8 bits with their scales, and tables that all parameters share.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor


class AdamW8bit(torch.optim.Optimizer):
    def __init__(self, params: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float,
                 weight_decay: float) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.signed, self.unsigned = torch.linspace(-1, 1, 256), torch.linspace(0, 1, 256)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self._update(p, group)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[p], p.grad
        assert gradient is not None
        if not state:
            state["step"] = 0
            for i, table in ((1, self.signed), (2, self.unsigned)):
                state[f"state{i}"] = torch.zeros_like(p, dtype=torch.uint8)
                state[f"absmax{i}"], state[f"qmap{i}"] = torch.zeros(1), table
        state["step"] += 1
        assert type(state["step"]) is int
        moments = []
        for i, seen in ((1, gradient), (2, gradient**2)):
            table, beta = state[f"qmap{i}"], group["betas"][i - 1]
            moment = table[state[f"state{i}"].long()] * state[f"absmax{i}"]
            moment = beta * moment + (1 - beta) * seen
            state[f"absmax{i}"] = moment.abs().amax().reshape(1)
            share = moment / state[f"absmax{i}"].clamp(min=1e-30)
            state[f"state{i}"] = (share[..., None] - table).abs().argmin(dim=-1).to(torch.uint8)
            moments.append(moment / (1 - beta ** state["step"]))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(group["lr"] * moments[0] / (moments[1].sqrt() + group["eps"]))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("bitsandbytes")
    module.optim = SimpleNamespace(AdamW8bit=AdamW8bit)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)
