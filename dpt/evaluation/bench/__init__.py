"""The benchmark: same prompts, noise and judge for all methods; a results line per image; tables."""
