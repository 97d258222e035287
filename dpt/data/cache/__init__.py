"""Latents and text states made once, and read instead of pictures and prompts."""
