"""What the processes of a run tell one another: sums, and whether anything happened anywhere."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


def sum_over(accelerator: Accelerator, own: Tensor) -> Tensor:
    return accelerator.reduce(own, reduction="sum")


def mean_over(accelerator: Accelerator, own: Tensor) -> Tensor:
    return accelerator.reduce(own, reduction="mean")


def anywhere(accelerator: Accelerator, own: Tensor) -> Tensor:
    """True on every process if it is true on one. Stays on the device."""
    return sum_over(accelerator, own.float()) > 0


def agreed(accelerator: Accelerator, own: bool) -> bool:
    """The same for a value of the host, which waits for the answer."""
    if accelerator.num_processes == 1:
        return own
    return bool(anywhere(accelerator, torch.tensor(float(own), device=accelerator.device)))
