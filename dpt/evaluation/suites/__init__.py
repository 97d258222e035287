"""Prompt suites: prompts with the claims that their images must meet."""
