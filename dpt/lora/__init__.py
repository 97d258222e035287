"""What is trained of the UNet: low-rank additions to the projections of its attention layers."""

from dpt.lora.attached import Lora
from dpt.lora.config import LoraConfig

__all__ = ["Lora", "LoraConfig"]
