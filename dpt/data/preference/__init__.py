"""What people prefer among images of one prompt: published files, their checks, splits, batches."""
