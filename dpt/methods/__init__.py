"""Methods that generate pictures for prompts."""
