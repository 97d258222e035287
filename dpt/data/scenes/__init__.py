"""Rendered scenes of coloured shapes: what they show, what is said of them, and how they are written to files."""
