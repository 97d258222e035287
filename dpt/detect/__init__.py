"""Detectors: images in, labelled boxes out."""
