"""`dpt sld`: correct pictures by their prompts, edit them by instructions."""
