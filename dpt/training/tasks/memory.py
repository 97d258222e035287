"""A rough estimate of what each task holds on the device: enough to see that a batch will not fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpt.adapter import AdapterConfig
from dpt.adapter.phrase_encoder import PhraseEncoder
from dpt.backbone import Backbone
from dpt.backbone.features import feature_grid, read_feature
from dpt.data.pairs import GROUNDING, MATCHING

PAIRS = len(GROUNDING) + len(MATCHING)

MAPS_AT_ONCE = 12
"""Of the UNet's widest map: those that wait as skips, and those of the layer at work."""


def probing_memory(backbone: Backbone, phrases: PhraseEncoder, config: AdapterConfig, examples: int) -> dict[str, int]:
    pairs = PAIRS * examples
    height, width = backbone.default_latent_size
    map_bytes = int(backbone.unet.config.block_out_channels[0]) * height * width * backbone.unet.dtype.itemsize
    return {
        "frozen model": frozen_memory(backbone, phrases),
        "its activations": MAPS_AT_ONCE * map_bytes * pairs,
        "the adapter's activations": _adapter_activations(config, backbone) * pairs,
    }


def frozen_memory(backbone: Backbone, phrases: PhraseEncoder | None = None) -> int:
    modules = [backbone.unet, backbone.vae, backbone.text_encoder, getattr(phrases, "encoder", None)]
    parts = (module for module in modules if module is not None)
    frozen = (p for module in parts for p in module.parameters() if not p.requires_grad)
    return sum(p.numel() * p.element_size() for p in frozen)


def _adapter_activations(config: AdapterConfig, backbone: Backbone) -> int:
    """Bytes per pair that wait for the backward pass; where they are computed twice, they are there the second time."""
    height, width = feature_grid(backbone.unet.config, config.unet_feature, backbone.default_latent_size)
    tokens, d, queries = height * width, config.hidden_dim, config.num_queries
    feature = 4 * tokens * sum(config.feature_channels)
    layer = 12 * d + (3 if config.dropout else 1) * config.dim_feedforward
    encoder = config.enc_layers * tokens * layer
    decoder = config.dec_layers * (queries * (layer + 6 * d) + 3 * tokens * d)
    return feature + 4 * (encoder + decoder)


CHECKPOINTED = ("ResnetBlock2D", "BasicTransformerBlock")
"""Of these only the results wait, where activations are computed twice, and what is within one at a time."""


def tuning_memory(
    backbone: Backbone, phrases: PhraseEncoder | None, config: AdapterConfig | None, examples: int, checkpointing: bool
) -> dict[str, int]:
    """Without an adapter, of the denoising loss alone."""
    whole = saved_activations(backbone, None, checkpointing)
    if phrases is None or config is None:
        return {"frozen model": frozen_memory(backbone), "its activations": whole * examples}
    begun = saved_activations(backbone, config.unet_feature, checkpointing)
    estimate = probing_memory(backbone, phrases, config, examples)
    return {**estimate, "its activations": (begun * (PAIRS - 1) + whole) * examples}


def saved_activations(backbone: Backbone, feature: str | None, checkpointing: bool) -> int:
    """Bytes for one picture, up to a feature or to the output: what each layer returns, found without computing."""
    held = backbone.unet
    with torch.device("meta"):
        unet: Any = type(held).from_config(held.config)
        z = torch.zeros(1, held.config.in_channels, *backbone.default_latent_size)
        states = torch.zeros(1, backbone.prompt_length, backbone.text_width)
    counted = _SavedTensorCounter(unet, held.dtype.itemsize)
    t = torch.zeros(1, device="meta")
    if feature is None:
        unet(z, t, encoder_hidden_states=states)
    else:
        read_feature(unet, z, t, states, feature)
    return counted.between + counted.most_within if checkpointing else counted.whole


class _SavedTensorCounter:
    """Bytes that wait while a UNet computes, by hooks."""

    def __init__(self, unet: nn.Module, itemsize: int) -> None:
        self.itemsize = itemsize
        self.whole = self.between = self.within = self.most_within = 0
        for layer in _layers_with_saved_activations(unet):
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


def _layers_with_saved_activations(unet: nn.Module) -> list[nn.Module]:
    """Layers whose results do: see `dpt.backbone.memory_saving_layers` for those that do not."""
    leaves = (module for module in unet.modules() if not any(module.children()))
    return [leaf for leaf in leaves if not isinstance(leaf, nn.GroupNorm | nn.SiLU)]
