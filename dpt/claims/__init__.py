"""What can be true of an image, and whether it is. No torch."""
