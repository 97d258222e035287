"""Optional speed-ups: torch.compile, channels-last weights, TF32. Numbers differ by rounding only."""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import torch

from dpt.backbone.base import Backbone
from dpt.errors import UserError

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
