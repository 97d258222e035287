"""What an adapter knows: matching and grounding, asked over fixed examples."""
