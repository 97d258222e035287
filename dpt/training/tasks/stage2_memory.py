"""A rough estimate of what tuning holds on the device: now the UNet's activations wait for a backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpt.adapter import AdapterConfig
from dpt.adapter.phrases import PhraseEncoder
from dpt.backbone import Backbone
from dpt.backbone.features import read_feature
from dpt.training.tasks import stage1_memory
from dpt.training.tasks.stage1_memory import PAIRS

CHECKPOINTED = ("ResnetBlock2D", "BasicTransformerBlock")
"""Of these only the results wait, where activations are computed twice, and what is within one at a time."""


def memory(
    backbone: Backbone, phrases: PhraseEncoder | None, config: AdapterConfig | None, examples: int, checkpointing: bool
) -> dict[str, int]:
    """Without an adapter, of the denoising loss alone."""
    whole = kept_by_unet(backbone, None, checkpointing)
    if phrases is None or config is None:
        return {"frozen model": stage1_memory.held(backbone), "its activations": whole * examples}
    begun = kept_by_unet(backbone, config.unet_feature, checkpointing)
    estimate = stage1_memory.memory(backbone, phrases, config, examples)
    return {**estimate, "its activations": (begun * (PAIRS - 1) + whole) * examples}


def kept_by_unet(backbone: Backbone, feature: str | None, checkpointing: bool) -> int:
    """Bytes for one picture, up to a feature or to the output: what each layer returns, found without computing."""
    held = backbone.unet
    with torch.device("meta"):
        unet: Any = type(held).from_config(held.config)
        z = torch.zeros(1, held.config.in_channels, *backbone.default_latent_size)
        states = torch.zeros(1, backbone.prompt_length, backbone.text_width)
    counted = _Counted(unet, held.dtype.itemsize)
    t = torch.zeros(1, device="meta")
    if feature is None:
        unet(z, t, encoder_hidden_states=states)
    else:
        read_feature(unet, z, t, states, feature)
    return counted.between + counted.most_within if checkpointing else counted.whole


class _Counted:
    """Bytes that wait while a UNet computes, by hooks."""

    def __init__(self, unet: nn.Module, itemsize: int) -> None:
        self.itemsize = itemsize
        self.whole = self.between = self.within = self.most_within = 0
        for layer in _waiting(unet):
            layer.register_forward_hook(self._layer)
        for block in unet.modules():
            if type(block).__name__ in CHECKPOINTED:
                block.register_forward_pre_hook(self._begin)
                block.register_forward_hook(self._end)

    def _layer(self, _: nn.Module, __: Any, result: Any) -> None:
        self.whole += self._size(result)
        self.within += self._size(result)

    def _begin(self, _: nn.Module, __: Any) -> None:
        self.within = 0

    def _end(self, _: nn.Module, __: Any, result: Any) -> None:
        self.between += self._size(result)
        self.most_within = max(self.most_within, self.within)

    def _size(self, result: Any) -> int:
        return result.numel() * self.itemsize if isinstance(result, Tensor) else 0


def _waiting(unet: nn.Module) -> list[nn.Module]:
    """Layers whose results do: see `dpt.backbone.lean` for those that do not."""
    leaves = (module for module in unet.modules() if not any(module.children()))
    return [leaf for leaf in leaves if not isinstance(leaf, nn.GroupNorm | nn.SiLU)]
