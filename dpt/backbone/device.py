"""Which device and dtype a model runs in, and optional speed-ups: torch.compile, channels-last weights, TF32."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from dpt.backbone.base import Backbone
from dpt.errors import UserError

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device given, or the first CUDA GPU, else Apple's GPU (mps), else the CPU."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"{str(device)!r} is not a device; say cpu, mps, cuda or cuda:N") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device {chosen}: this machine has {_count_gpus()}")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("there is no device mps: this machine has no Apple GPU that PyTorch can use")
    return chosen


def resolve_dtype(device: torch.device, dtype: str | torch.dtype | None = None) -> torch.dtype:
    """The dtype of text encoder and UNet: the one given, or bfloat16 (float16 without it) on CUDA, else float32.

    A CPU runs in bfloat16 only if it has instructions for it, and never in float16. The VAE always runs in float32:
    it is called once per image, several published VAEs overflow in float16, and bfloat16 has too few digits for 256
    levels of a colour.
    """
    given = _named_dtype(dtype) if isinstance(dtype, str) else dtype
    if device.type == "cpu":
        if given == torch.bfloat16 and cpu_supports_bfloat16():
            return given
        if given not in (None, torch.float32):
            warnings.warn(f"{_dtype_name(given)} is slow and coarse on a CPU: using float32", stacklevel=2)
        return torch.float32
    if given is not None:
        return given
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def execution_device(module: Any) -> torch.device:
    """The device that a module computes on: that of its weights, unless accelerate offloads them."""
    if not hasattr(module, "_hf_hook"):
        stored: torch.device = next(module.parameters()).device
        # Weights in main memory may be offloaded in groups. diffusers looks through all modules for that: milliseconds.
        return stored if stored.type != "cpu" or not torch.accelerator.is_available() else module.device
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return module.device


def resolve_matmul_dtype(device: torch.device, name: str) -> torch.dtype:
    """The dtype of the trained part's matrix products: as named, except where a CPU would only be slower in it."""
    dtype = _named_dtype(name)
    return resolve_dtype(device, dtype) if device.type == "cpu" else dtype


def cpu_supports_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 (AVX512-BF16 or AMX)."""
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(test() for test in tests if test is not None)


def widest_float(device: torch.device) -> torch.dtype:
    """float64 where the device has it; Apple's GPUs (mps) do not."""
    return torch.float32 if device.type == "mps" else torch.float64


def _named_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UserError(f"{name!r} is not a dtype; say one of {', '.join(list(DTYPES)[:3])}")
    return DTYPES[name]


def _dtype_name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _count_gpus() -> str:
    count = torch.cuda.device_count()
    return "no GPU" if count == 0 else f"{count} GPU{'s' if count > 1 else ''} (counted from 0)"


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


def matmul_autocast(dtype: torch.dtype, device: str) -> AbstractContextManager[Any]:
    """Inside, matrix products are computed in `dtype`; in float32 nothing changes."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value


RECOMPILE_LIMIT = 64


def apply_speedups(
    backbone: Backbone, *, compiled: bool = False, channels_last: bool = False, tf32: bool = False
) -> list[str]:
    """Apply them and return a sentence for each, in the order of the arguments."""
    applied = []
    if compiled:
        applied.append(_compile(backbone))
    if channels_last:
        applied.append(_channels_last(backbone))
    if tf32:
        applied += use_tf32(backbone.device)
    return applied


def _compile(backbone: Backbone) -> str:
    """Compile the network's repeated blocks, each class once; their `forward` is not replaced."""
    if backbone.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UserError("--compile needs a C++ compiler on a CPU: install g++ or clang++, or leave the flag out")
    kinds = block_classes(backbone.network)
    blocks = [module for module in backbone.network.modules() if type(module).__name__ in kinds]
    if not blocks:
        raise UserError("--compile has nothing to compile: this model has no repeated blocks; leave the flag out")
    # One graph per width, with and without gradients; beyond PyTorch's own limit the rest would run uncompiled.
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    backbone.network._repeated_blocks = list(kinds)
    backbone.network.compile_repeated_blocks()
    return (
        f"compile: {len(blocks)} blocks of the model ({', '.join(kinds)}) are compiled on first use, which takes "
        "seconds to minutes"
    )


def block_classes(network: Any) -> tuple[str, ...]:
    """Names of the classes of the blocks that a network repeats; diffusers does not list them for every one."""
    listed = getattr(network, "_repeated_blocks", None) or getattr(network, "_no_split_modules", None) or ()
    return tuple(name for name in listed if name.endswith("Block"))


def compiled_blocks(unet: Any) -> int:
    return sum(module._compiled_call_impl is not None for module in unet.modules())


def _channels_last(backbone: Backbone) -> str:
    for part in backbone.modules():
        part.to(memory_format=torch.channels_last)
    return "channels_last: the convolution weights of the UNet and the VAE are stored channels last"


def use_tf32(device: torch.device) -> list[str]:
    if device.type == "cpu":
        warnings.warn("--allow_tf32 has no effect: a CPU does not round float32", stacklevel=2)
        return []
    torch.backends.cuda.matmul.allow_tf32 = True
    return ["allow_tf32: matrix products of float32 keep 10 of 23 bits on this GPU"]
