"""Estimates of each task's memory on the device, printed before the first step."""

from __future__ import annotations

import torch
from torch import Tensor

from dpt.adapter import Adapter, AdapterConfig
from dpt.adapter.phrase_encoder import PhraseEncoder
from dpt.backbone import Backbone
from dpt.data.pairs import GROUNDING, MATCHING, PICTURES_AT_ONCE

PAIRS = len(GROUNDING) + len(MATCHING)

IMAGES = 3
"""True image, hard negative, random image."""

VAE_MAPS = 4
"""Feature maps of the VAE's first level that are alive at once while it encodes, in float32."""


def probing_memory(backbone: Backbone, phrases: PhraseEncoder, config: AdapterConfig, examples: int) -> dict[str, int]:
    """Images are encoded, then features are computed without gradients, then the adapter learns: the largest counts."""
    phases = {
        "encoding images": encoding_bytes(backbone, IMAGES * examples),
        "the frozen model's activations": backbone.inference_bytes() * PAIRS * examples,
        "the adapter's activations": adapter_bytes(config, backbone) * examples,
    }
    largest = max(phases, key=lambda phase: phases[phase])
    return {"frozen model": frozen_bytes(backbone, phrases), largest: phases[largest]}


def tuning_memory(
    backbone: Backbone, phrases: PhraseEncoder | None, config: AdapterConfig | None, examples: int, checkpointing: bool
) -> dict[str, int]:
    """Images are encoded, then everything learns together. Without an adapter, by the denoising loss alone."""
    saved = {"the frozen model's activations": backbone.activation_bytes(None, checkpointing) * examples}
    images = examples
    if config is not None:
        others = backbone.activation_bytes(config.unet_feature, checkpointing) * (PAIRS - 1) * examples
        saved["the frozen model's activations"] += others
        saved["the adapter's activations"] = adapter_bytes(config, backbone) * examples
        images = IMAGES * examples
    encoding = {"encoding images": encoding_bytes(backbone, images)}
    largest = max(saved, encoding, key=lambda phase: sum(phase.values()))
    return {"frozen model": frozen_bytes(backbone, phrases), **largest}


def frozen_bytes(backbone: Backbone, phrases: PhraseEncoder | None = None) -> int:
    modules = [*backbone.modules(), getattr(phrases, "encoder", None)]
    parts = (module for module in modules if module is not None)
    frozen = (p for module in parts for p in module.parameters() if not p.requires_grad)
    return sum(p.numel() * p.element_size() for p in frozen)


def encoding_bytes(backbone: Backbone, images: int) -> int:
    """Peak memory of the VAE, which encodes a limited number of images at once."""
    vae = next((module for module in backbone.modules() if hasattr(module.config, "latent_channels")), None)
    if vae is None:
        return 0
    height, width = backbone.default_image_size
    channels = VAE_MAPS * int(vae.config.block_out_channels[0])
    return 4 * height * width * (channels * min(images, PICTURES_AT_ONCE) + 3 * images)


def adapter_bytes(config: AdapterConfig, backbone: Backbone) -> int:
    """What the adapter saves for the backward pass of one example's pairs, counted on the meta device.

    With gradient checkpointing it is saved all the same, while the adapter is computed a second time.
    """
    height, width = backbone.feature_grid(config.unet_feature)
    tokens, queries = height * width, (config.num_queries_matching, config.num_queries_rec, config.num_queries)
    # Fused attention saves no attention weights. The meta device has no fused attention, a CPU none with dropout.
    fused = not config.dropout or backbone.device.type == "cuda"
    saved: dict[int, tuple[Tensor, int]] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        attention = tensor.ndim > 2 and tensor.shape[-1] == tokens and tensor.shape[-2] in (tokens, *queries)
        if not (fused and attention):
            saved[storage._cdata] = (tensor, storage.nbytes())  # the tensor keeps the storage from being reused
        return tensor

    with torch.device("meta"):
        adapter = Adapter(config).train()
        weights = {p.untyped_storage()._cdata for p in adapter.parameters()}
        features = torch.zeros(PAIRS, sum(config.feature_channels), height, width)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), torch.enable_grad():
            outputs = adapter.decode_split(features, torch.zeros(PAIRS), len(GROUNDING))
    total = sum(size for storage, (_, size) in saved.items() if storage not in weights)
    del outputs
    return total
