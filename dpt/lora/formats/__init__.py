"""LoRA files in the formats of other programs."""
