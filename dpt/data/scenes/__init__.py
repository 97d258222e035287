"""Rendered scenes of coloured shapes: layout, rendering, captions, expressions, negatives, and export."""
