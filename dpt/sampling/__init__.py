"""From prompts to images: one loop over any diffusers scheduler, guided by functions around its seam."""
