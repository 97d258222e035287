"""Self-correcting LLM-controlled Diffusion: detect, plan, edit the latents, repeat (arXiv 2311.16090)."""
