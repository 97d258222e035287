"""Prompt suites, detectors and the judge."""
