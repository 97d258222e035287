"""What an adapter or a model knows."""
