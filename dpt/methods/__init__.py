"""Ways to make pictures for prompts."""
