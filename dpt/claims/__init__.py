"""What can be true of a picture, and whether it is. No torch."""
