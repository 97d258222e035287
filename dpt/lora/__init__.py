"""What is trained of the UNet: low-rank additions to the projections of its attention layers."""

from dpt.lora.injection import Lora, LoraConfig

__all__ = ["Lora", "LoraConfig"]
