"""Named UNet features (section 1.2 of the method), computing nothing after the deepest block they need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dpt.backbone.feature_names import Feature, feature
from dpt.backbone.walk import Partway, begin, step


def read_feature(
    unet: Any, latents: Tensor, t: Tensor | int, states: Tensor, name: str, pause_after: int | None = None
) -> tuple[Tensor, Partway]:
    """F = UNet_l(z_t, c, t), (B,C,h,w), and the pass from which `walk.finish` can go on.

    The pass stands after the deepest block of the feature, or after an earlier one that `pause_after` names.

    The maps of a name with several are joined along the channels in the order named; those of `all-C-S` are
    first resized to (S,S), and their projection to C channels is left to the reader, because it is trained.
    """
    asked = feature(unet.config, name)
    at = begin(unet, latents, t, states)
    maps: dict[int, Tensor] = {}
    paused = None
    while at.done <= asked.deepest:
        block = at.done
        at = step(unet, at)
        if block in asked.blocks:
            maps[block] = _resized(at.hidden, asked)
        if block == pause_after:
            paused = at
    return _joined([maps[block] for block in asked.blocks]), paused or at


def _resized(hidden: Tensor, asked: Feature) -> Tensor:
    if asked.fused_side is None:
        return hidden
    return interpolate(hidden, size=(asked.fused_side, asked.fused_side), mode="nearest")


def _joined(maps: list[Tensor]) -> Tensor:
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
