"""The frozen text-to-image model: encodes text and images, decodes latents, and predicts noise."""

from dpt.backbone.base import Backbone, Condition, NoiseSchedule
from dpt.backbone.opening import open_backbone

__all__ = ["Backbone", "Condition", "NoiseSchedule", "open_backbone"]
