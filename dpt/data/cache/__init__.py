"""Latents of images and states of texts, encoded once by `dpt cache` and read by training."""
