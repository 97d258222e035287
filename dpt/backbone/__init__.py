"""The frozen text-to-image model: text to states, images to latents and back, noise, prediction."""

from dpt.backbone.text import Condition
from dpt.backbone.unet import Backbone

__all__ = ["Backbone", "Condition"]
