"""An image and a prompt to a number."""
