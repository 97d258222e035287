"""One judge for every method: the same prompts and noise, a line for each picture, tables counted from the lines."""
