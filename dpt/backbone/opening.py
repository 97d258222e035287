"""From a folder or hub id to a `Backbone`."""

from __future__ import annotations

from pathlib import Path

import torch

from dpt.backbone.base import Backbone
from dpt.backbone.device import resolve_device, resolve_dtype
from dpt.backbone.folder import UNET, ModelFolder
from dpt.backbone.loading import locate_model
from dpt.backbone.unet import UNetBackbone

BACKBONES = {UNET.name: UNetBackbone}
"""By the component that holds the denoising network."""


def open_backbone(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    prediction_type: str | None = None,
) -> Backbone:
    """Open a diffusers folder (never touching the network) or a hub id.

    `prediction_type` overrides the scheduler's config.
    """
    chosen = resolve_device(device)
    precision = resolve_dtype(chosen, dtype)
    path = locate_model(path_or_hub_id, revision)
    kind = BACKBONES[next((name for name in BACKBONES if (path / name).is_dir()), UNET.name)]
    return kind.load(ModelFolder.check(path, kind.components), chosen, precision, prediction_type)
