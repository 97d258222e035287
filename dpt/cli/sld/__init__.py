"""`dpt sld`: correct images by their prompts, edit them by instructions."""
