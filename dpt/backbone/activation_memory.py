"""An estimate of a network's activations, found on the meta device without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

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
