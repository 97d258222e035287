"""One judge for all methods: same prompts and noise, a line per picture, tables computed from the lines."""
