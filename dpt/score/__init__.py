"""A picture and a prompt to a number."""
