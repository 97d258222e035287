"""What reads a picture into objects."""
