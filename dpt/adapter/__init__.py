"""What is trained to read the frozen model: matching an image with a text, grounding a phrase in it."""

from dpt.adapter.config import AdapterConfig, check_fits, config_for
from dpt.adapter.model import Adapter, AdapterOutput, GroundingOutput

__all__ = ["Adapter", "AdapterConfig", "AdapterOutput", "GroundingOutput", "check_fits", "config_for"]
