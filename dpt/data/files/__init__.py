"""Data folders in the published formats: read, checked, prepared."""
