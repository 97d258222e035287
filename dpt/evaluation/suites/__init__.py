"""Prompt suites: prompts with the claims that their pictures must meet."""
