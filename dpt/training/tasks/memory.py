"""A rough estimate of what each task holds on the device: enough to see that a batch will not fit."""

from __future__ import annotations

from dpt.adapter import AdapterConfig
from dpt.adapter.phrase_encoder import PhraseEncoder
from dpt.backbone import Backbone
from dpt.data.pairs import GROUNDING, MATCHING

PAIRS = len(GROUNDING) + len(MATCHING)


def probing_memory(backbone: Backbone, phrases: PhraseEncoder, config: AdapterConfig, examples: int) -> dict[str, int]:
    pairs = PAIRS * examples
    return {
        "frozen model": frozen_memory(backbone, phrases),
        "its activations": backbone.inference_bytes() * pairs,
        "the adapter's activations": _adapter_activations(config, backbone) * pairs,
    }


def frozen_memory(backbone: Backbone, phrases: PhraseEncoder | None = None) -> int:
    modules = [*backbone.modules(), getattr(phrases, "encoder", None)]
    parts = (module for module in modules if module is not None)
    frozen = (p for module in parts for p in module.parameters() if not p.requires_grad)
    return sum(p.numel() * p.element_size() for p in frozen)


def _adapter_activations(config: AdapterConfig, backbone: Backbone) -> int:
    """Bytes per pair that wait for the backward pass; where they are computed twice, they are there the second time."""
    height, width = backbone.feature_grid(config.unet_feature)
    tokens, d, queries = height * width, config.hidden_dim, config.num_queries
    feature = 4 * tokens * sum(config.feature_channels)
    layer = 12 * d + (3 if config.dropout else 1) * config.dim_feedforward
    encoder = config.enc_layers * tokens * layer
    decoder = config.dec_layers * (queries * (layer + 6 * d) + 3 * tokens * d)
    return feature + 4 * (encoder + decoder)


def tuning_memory(
    backbone: Backbone, phrases: PhraseEncoder | None, config: AdapterConfig | None, examples: int, checkpointing: bool
) -> dict[str, int]:
    """Without an adapter, of the denoising loss alone."""
    whole = backbone.activation_bytes(None, checkpointing)
    if phrases is None or config is None:
        return {"frozen model": frozen_memory(backbone), "its activations": whole * examples}
    begun = backbone.activation_bytes(config.unet_feature, checkpointing)
    estimate = probing_memory(backbone, phrases, config, examples)
    return {**estimate, "its activations": (begun * (PAIRS - 1) + whole) * examples}
