"""Faults put into training on purpose, and what must come of them."""
