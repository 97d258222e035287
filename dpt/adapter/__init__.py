"""The adapter: trained on the frozen model's features to match images with texts and to ground phrases."""

from dpt.adapter.model import Adapter, AdapterOutput, GroundingOutput
from dpt.adapter.transformer import AdapterConfig, check_fits, config_for

__all__ = ["Adapter", "AdapterConfig", "AdapterOutput", "GroundingOutput", "check_fits", "config_for"]
