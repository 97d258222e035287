"""Losses as pure functions of tensors, in full precision: matching, grounding, denoising."""
