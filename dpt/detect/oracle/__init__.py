"""The oracle: reads rendered scenes back into objects by classical vision."""
