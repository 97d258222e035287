"""Prompt suites: texts with what must be so in a picture of them."""
