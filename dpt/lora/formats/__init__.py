"""A LoRA under the names that other programs give it."""
