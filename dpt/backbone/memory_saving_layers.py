"""Layers of a frozen UNet that keep less for the way back. The numbers are the same.

PyTorch's own keep what a gradient of their weights would need, which frozen weights have none of, and results that are
cheap to compute again.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, group_norm, silu
from torch.nn.grad import conv2d_input


def use_memory_saving_layers(unet: nn.Module) -> None:
    """For the layers that are of a known kind; others stay as they are, and so does one whose weights learn."""
    kinds: tuple[Any, ...] = (MemorySavingConv, MemorySavingResnet, MemorySavingGEGLU)
    for module in unet.modules():
        for lean in kinds:
            if type(module) is lean.__base__ and lean.fits(module):
                module.__class__ = lean


class MemorySavingConv(nn.Conv2d):
    """Keeps its weights alone."""

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad or _is_trainable(self):
            return super().forward(x)
        how = (self.stride, self.padding, self.dilation, self.groups)
        convolved: Tensor = _Convolved.apply(x, self.weight, self.bias, *how)
        return convolved


class MemorySavingResnet(ResnetBlock2D):
    """Keeps what its normalisations read; what they and the activations make of it is computed again."""

    @staticmethod
    def fits(block: ResnetBlock2D) -> bool:
        plain = block.time_embedding_norm == "default" and not (block.skip_time_act or block.up or block.down)
        return plain and block.time_emb_proj is not None and isinstance(block.nonlinearity, nn.SiLU)

    def forward(self, input_tensor: Tensor, temb: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden = self.conv1(_normed(self.norm1, input_tensor))
        hidden = hidden + self.time_emb_proj(silu(temb))[:, :, None, None]
        hidden = self.conv2(self.dropout(_normed(self.norm2, hidden)))
        past = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return (past + hidden) / self.output_scale_factor


class MemorySavingGEGLU(GEGLU):
    """Keeps what is gated and by what, not the gate's activation."""

    @staticmethod
    def fits(gate: GEGLU) -> bool:
        return True

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        gated: Tensor = _Gated.apply(self.proj(hidden_states))
        return gated


def _is_trainable(layer: nn.Module) -> bool:
    return any(p.requires_grad for p in layer.parameters())


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.how = x.shape, how
        return torch.conv2d(x, weight, bias, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upper: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return conv2d_input(ctx.shape, weight, upper, *ctx.how), *[None] * 6


def _normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """SiLU of it."""
    if not x.requires_grad or _is_trainable(norm):
        return silu(norm(x))
    normed: Tensor = _Normed.apply(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return normed


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *how: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.how = how
        return silu(group_norm(x, *how))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upper: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            again = silu(group_norm(x, *ctx.how))
        return *torch.autograd.grad(again, x, upper), *[None] * 4


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        ctx.save_for_backward(projected)
        value, gate = projected.chunk(2, dim=-1)
        return value * gelu(gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upper: Tensor) -> Tensor:
        value, gate = ctx.saved_tensors[0].chunk(2, dim=-1)
        return torch.cat([upper * gelu(gate), torch.ops.aten.gelu_backward(upper * value, gate)], dim=-1)
