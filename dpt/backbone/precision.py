"""Full precision for what must not be computed in half, whatever the autocast around it; and the exception."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])
_HALF = (torch.float16, torch.bfloat16)


def full_precision(function: F) -> F:
    """Run `function` without autocast, its half-precision tensor arguments turned into float32."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        device = next((value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), "cpu")
        with _without_autocast(device):
            return function(*map(_widen, args), **{key: _widen(value) for key, value in kwargs.items()})

    return wrapped  # type: ignore[return-value]


def products_in(dtype: torch.dtype, device: str) -> AbstractContextManager[Any]:
    """Inside, matrix products are computed in `dtype`; in float32 nothing changes."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value
