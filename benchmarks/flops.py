"""Products counted, a multiplication and an addition being two, and how fast this machine can do them at best."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

DENSE = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""What makers say of half formats, without sparsity."""


class Counted(TorchDispatchMode):
    """FlopCounterMode's counts; that one follows modules too, which it cannot through `autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def best_rate(device: torch.device, dtype: torch.dtype, tries: int = 5) -> float:
    """Products a second of one large matrix by another, the best of a few tries: what is within reach here."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    rates = []
    for _ in range(tries + 1):
        begun = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * n**3 / (time.perf_counter() - begun))
    return max(rates[1:])


def dense_rate(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for key, rate in DENSE.items() if key in name), None)
