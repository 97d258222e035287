"""Checkpoints and optimisation."""
