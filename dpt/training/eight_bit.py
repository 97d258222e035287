"""AdamW with moments of 8 bits, by bitsandbytes: imported here, when asked for, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dpt.errors import UserError


def require_eight_bit(device: torch.device) -> None:
    """Say what is in the way, before anything is loaded or written."""
    if device.type != "cuda":
        raise UserError(f"--use_8bit_adam runs on CUDA devices only, and this run is on {device.type}")
    _bitsandbytes()


def eight_bit_adamw(parameters: Sequence[Tensor], **options: Any) -> torch.optim.Optimizer:
    """Parameters of fewer than 4096 numbers keep moments of 32 bits."""
    optimizer: torch.optim.Optimizer = _bitsandbytes().optim.AdamW8bit(parameters, **options)
    return optimizer


def _bitsandbytes() -> ModuleType:
    try:
        import bitsandbytes
    except Exception as error:  # also what it raises where it does not find the CUDA libraries it was built for
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--use_8bit_adam needs bitsandbytes, which cannot be imported ({why}): it is in requirements-gpu.txt"
        ) from None
    return bitsandbytes
