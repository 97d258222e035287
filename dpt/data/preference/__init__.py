"""What people prefer among pictures of one prompt: published files, their checks, splits, batches."""
