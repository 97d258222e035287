"""The frozen text-to-image model: text to states, images to latents and back, noise, prediction."""

from dpt.backbone.model import Backbone
from dpt.backbone.text import Text

__all__ = ["Backbone", "Text"]
