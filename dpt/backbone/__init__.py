"""The frozen text-to-image model: encodes text and images, decodes latents, and predicts noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpt.backbone.base import Backbone, Condition, NoiseSchedule

if TYPE_CHECKING:
    from dpt.backbone.opening import open_backbone

__all__ = ["Backbone", "Condition", "NoiseSchedule", "open_backbone"]


def __getattr__(name: str) -> Any:
    """`open_backbone` needs diffusers, whose import takes seconds; commands about data do without."""
    if name != "open_backbone":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dpt.backbone.opening import open_backbone

    return open_backbone
