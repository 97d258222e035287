"""An estimate of a network's activations, and layers of a frozen UNet that save less for the backward pass.

PyTorch's own layers save

- the input of every convolution, which only the gradient of its weights needs: frozen weights have none;
- the output of every GroupNorm, SiLU and GELU, although the backward pass can recompute it from the input, which is
  saved anyway.

The forward pass calls the same kernels in the same order, so its numbers are identical; the backward pass evaluates
the same formulas on recomputed values, so gradients differ by rounding at most.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, group_norm, silu
from torch.nn.grad import conv2d_input

MAPS_AT_ONCE = 12
"""Of the UNet's widest map, alive at once without gradients: the skips, and those of the current layer."""

CHECKPOINTED = ("ResnetBlock2D", "BasicTransformerBlock")
"""With gradient checkpointing only the outputs of these are saved, plus the inside of one at a time."""


def saved_activation_bytes(
    network: Any,
    forward: Callable[[Any], object],
    gradient_checkpointing: bool,
    checkpointed: Collection[str] = CHECKPOINTED,
) -> int:
    """Bytes saved for the backward pass of `forward`, which calls a copy of the network on the meta device."""
    with torch.device("meta"):
        copy: Any = type(network).from_config(network.config)
    counter = _SavedTensorCounter(copy, network.dtype.itemsize, checkpointed)
    forward(copy)
    return counter.between + counter.most_within if gradient_checkpointing else counter.whole


class _SavedTensorCounter:
    """Adds up layer outputs by forward hooks."""

    def __init__(self, network: nn.Module, itemsize: int, checkpointed: Collection[str]) -> None:
        self.itemsize = itemsize
        self.whole = self.between = self.within = self.most_within = 0
        for layer in _saving_layers(network):
            layer.register_forward_hook(self._count_layer)
        for block in network.modules():
            if type(block).__name__ in checkpointed:
                block.register_forward_pre_hook(self._enter_block)
                block.register_forward_hook(self._leave_block)

    def _count_layer(self, _: nn.Module, __: Any, output: Any) -> None:
        self.whole += self._size(output)
        self.within += self._size(output)

    def _enter_block(self, _: nn.Module, __: Any) -> None:
        self.within = 0

    def _leave_block(self, _: nn.Module, __: Any, output: Any) -> None:
        self.between += self._size(output)
        self.most_within = max(self.most_within, self.within)

    def _size(self, output: Any) -> int:
        return output.numel() * self.itemsize if isinstance(output, Tensor) else 0


def _saving_layers(network: nn.Module) -> list[nn.Module]:
    """Layers whose output is saved: all but those that `memory_saving_layers` recomputes."""
    leaves = (module for module in network.modules() if not any(module.children()))
    return [leaf for leaf in leaves if not isinstance(leaf, nn.GroupNorm | nn.SiLU)]


def use_memory_saving_layers(unet: nn.Module) -> None:
    """Change the class of every layer of a known kind in place; a layer with trainable weights behaves as before."""
    kinds: tuple[Any, ...] = (MemorySavingConv, MemorySavingResnet, MemorySavingGEGLU)
    for module in unet.modules():
        for kind in kinds:
            if type(module) is kind.__base__ and kind.fits(module):
                module.__class__ = kind


class MemorySavingConv(nn.Conv2d):
    """Saves its weights, not its input."""

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad or _is_trainable(self):
            return super().forward(x)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        output: Tensor = _Conv.apply(x, self.weight, self.bias, *geometry)
        return output


class MemorySavingResnet(ResnetBlock2D):
    """Saves the inputs of its two norms; recomputes norm and activation."""

    @staticmethod
    def fits(block: ResnetBlock2D) -> bool:
        plain = block.time_embedding_norm == "default" and not (block.skip_time_act or block.up or block.down)
        return plain and block.time_emb_proj is not None and isinstance(block.nonlinearity, nn.SiLU)

    def forward(self, input_tensor: Tensor, temb: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden = self.conv1(_norm_silu(self.norm1, input_tensor))
        hidden = hidden + self.time_emb_proj(silu(temb))[:, :, None, None]
        hidden = self.conv2(self.dropout(_norm_silu(self.norm2, hidden)))
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return (shortcut + hidden) / self.output_scale_factor


class MemorySavingGEGLU(GEGLU):
    """Saves the projection of its input, not the gate's activation."""

    @staticmethod
    def fits(gate: GEGLU) -> bool:
        return True

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        gated: Tensor = _GELUGate.apply(self.proj(hidden_states))
        return gated


def _is_trainable(layer: nn.Module) -> bool:
    return any(p.requires_grad for p in layer.parameters())


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = x.shape, geometry
        return torch.conv2d(x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return conv2d_input(ctx.shape, weight, grad, *ctx.geometry), *[None] * 6


def _norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    if not x.requires_grad or _is_trainable(norm):
        return silu(norm(x))
    activated: Tensor = _NormSiLU.apply(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return activated


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *norm: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.norm = norm
        return silu(group_norm(x, *norm))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            recomputed = silu(group_norm(x, *ctx.norm))
        return *torch.autograd.grad(recomputed, x, grad), *[None] * 4


class _GELUGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        ctx.save_for_backward(projected)
        value, gate = projected.chunk(2, dim=-1)
        return value * gelu(gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        value, gate = ctx.saved_tensors[0].chunk(2, dim=-1)
        return torch.cat([grad * gelu(gate), torch.ops.aten.gelu_backward(grad * value, gate)], dim=-1)
