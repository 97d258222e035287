"""A rough estimate of what stage 1 holds on the device: enough to see that a batch will not fit."""

from __future__ import annotations

from dpt.adapter import AdapterConfig
from dpt.adapter.phrases import PhraseEncoder
from dpt.backbone import Backbone
from dpt.backbone.feature_names import feature_grid
from dpt.data.pairs import GROUNDING, MATCHING

PAIRS = len(GROUNDING) + len(MATCHING)
MAPS_AT_ONCE = 12
"""Of the UNet's widest map: those that wait as skips, and those of the layer at work."""


def memory(
    backbone: Backbone, phrases: PhraseEncoder, config: AdapterConfig, examples: int
) -> dict[str, int]:
    pairs = PAIRS * examples
    height, width = backbone.default_latent_size
    map_bytes = int(backbone.unet.config.block_out_channels[0]) * height * width * backbone.unet.dtype.itemsize
    return {
        "frozen model": held(backbone, phrases),
        "its activations": MAPS_AT_ONCE * map_bytes * pairs,
        "the adapter's activations": _activations(config, backbone) * pairs,
    }


def held(backbone: Backbone, phrases: PhraseEncoder | None = None) -> int:
    modules = [backbone.unet, backbone.vae, backbone.text_encoder, getattr(phrases, "encoder", None)]
    parts = (module for module in modules if module is not None)
    frozen = (p for module in parts for p in module.parameters() if not p.requires_grad)
    return sum(p.numel() * p.element_size() for p in frozen)


def _activations(config: AdapterConfig, backbone: Backbone) -> int:
    """Bytes per pair that wait for the backward pass; where they are computed twice, they are there the second time."""
    height, width = feature_grid(backbone.unet.config, config.unet_feature, backbone.default_latent_size)
    tokens, d, queries = height * width, config.hidden_dim, config.num_queries
    feature = 4 * tokens * sum(config.feature_channels)
    layer = 12 * d + (3 if config.dropout else 1) * config.dim_feedforward
    encoder = config.enc_layers * tokens * layer
    decoder = config.dec_layers * (queries * (layer + 6 * d) + 3 * tokens * d)
    return feature + 4 * (encoder + decoder)
