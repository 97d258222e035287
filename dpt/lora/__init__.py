"""What is trained of the UNet: low-rank additions to the projections of its attention layers."""

from dpt.lora.config import LoraConfig
from dpt.lora.injection import Lora

__all__ = ["Lora", "LoraConfig"]
