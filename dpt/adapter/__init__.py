"""What is trained to read the frozen model: matching an image with a text, grounding a phrase in it."""

from dpt.adapter.config import AdapterConfig, config_for
from dpt.adapter.model import Adapter, Grounding, Reading

__all__ = ["Adapter", "AdapterConfig", "Grounding", "Reading", "config_for"]
