"""Prompt suites, the benchmark, contact sheets and set distances."""
