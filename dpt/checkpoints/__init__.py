"""Trained results that travel: opened whatever their format, described, written for other programs, fetched."""

from dpt.checkpoints.open import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
