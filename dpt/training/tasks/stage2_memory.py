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
"""Of these only the results wait, where activations are computed twice."""


def memory(
    backbone: Backbone, phrases: PhraseEncoder | None, config: AdapterConfig | None, examples: int, checkpointing: bool
) -> dict[str, int]:
    """Without an adapter, of the denoising loss alone."""
    whole = kept_by_unet(backbone, None, checkpointing)
    if phrases is None or config is None:
        return {"frozen model": stage1_memory.held(backbone), "its activations": whole * examples}
    begun = kept_by_unet(backbone, config.unet_feature, checkpointing)
    estimate = stage1_memory.memory(backbone, phrases, config, examples, checkpointing)
    return {**estimate, "its activations": (begun * (PAIRS - 1) + whole) * examples}


def kept_by_unet(backbone: Backbone, feature: str | None, checkpointing: bool) -> int:
    """Bytes for one picture, up to a feature or to the output: what each layer returns, found without computing."""
    held = backbone.unet
    with torch.device("meta"):
        unet: Any = type(held).from_config(held.config)
        z = torch.zeros(1, held.config.in_channels, *backbone.default_latent_size)
        states = torch.zeros(1, backbone.prompt_length, backbone.text_width)
    total = 0

    def count(_: nn.Module, __: Any, result: Any) -> None:
        nonlocal total
        if isinstance(result, Tensor):
            total += result.numel() * held.dtype.itemsize

    for module in unet.modules():
        if type(module).__name__ in CHECKPOINTED if checkpointing else not any(module.children()):
            module.register_forward_hook(count)
    t = torch.zeros(1, device="meta")
    if feature is None:
        unet(z, t, encoder_hidden_states=states)
    else:
        read_feature(unet, z, t, states, feature)
    return total
