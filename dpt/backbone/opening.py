"""From a folder or hub id to a `Backbone`."""

from __future__ import annotations

from pathlib import Path

import torch

from dpt.backbone.base import Backbone
from dpt.backbone.device import resolve_device, resolve_dtype
from dpt.backbone.folder import ModelFolder
from dpt.backbone.loading import locate_model
from dpt.backbone.unet import UNetBackbone


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
    folder = ModelFolder.check(locate_model(path_or_hub_id, revision))
    return UNetBackbone.load(folder, chosen, precision, prediction_type)
