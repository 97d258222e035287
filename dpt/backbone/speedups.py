"""Ways to compute the same faster, which are asked for. Each says what it changed; numbers differ by rounding."""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import torch

from dpt.backbone.base import Backbone
from dpt.errors import UserError

VERSIONS = 64


def apply_speedups(
    backbone: Backbone, *, compiled: bool = False, channels_last: bool = False, tf32: bool = False
) -> list[str]:
    """A sentence for each way that was taken, in the order of the arguments."""
    said = []
    if compiled:
        said.append(_compile(backbone))
    if channels_last:
        said.append(_channels_last(backbone))
    if tf32:
        said += use_tf32(backbone.device)
    return said


def _compile(backbone: Backbone) -> str:
    """The blocks that repeat, each kind once: what is compiled is their call, and their code stays as it is."""
    if backbone.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UserError("--compile needs a C++ compiler on a CPU, and there is none (g++ or clang++)")
    kinds = tuple(getattr(backbone.network, "_repeated_blocks", None) or ())
    blocks = [module for module in backbone.network.modules() if type(module).__name__ in kinds]
    if not blocks:
        raise UserError("--compile finds no blocks in this UNet that repeat")
    # A version for each width, with gradients and without: past PyTorch's own limit the rest would not be compiled.
    torch._dynamo.config.recompile_limit = max(VERSIONS, torch._dynamo.config.recompile_limit)
    backbone.network.compile_repeated_blocks()
    return (
        f"compile: {len(blocks)} blocks of the UNet ({', '.join(kinds)}) are compiled as they are first used, "
        "which takes from seconds to minutes"
    )


def compiled_blocks(unet: Any) -> int:
    return sum(module._compiled_call_impl is not None for module in unet.modules())


def _channels_last(backbone: Backbone) -> str:
    for part in backbone.modules():
        part.to(memory_format=torch.channels_last)
    return "channels_last: the weights of the UNet's and the VAE's convolutions are laid out channels last"


def use_tf32(device: torch.device) -> list[str]:
    if device.type == "cpu":
        warnings.warn("--allow_tf32 has no effect: a CPU does not round float32", stacklevel=2)
        return []
    torch.backends.cuda.matmul.allow_tf32 = True
    return ["allow_tf32: matrix products of float32 keep 10 of 23 bits on this GPU"]
