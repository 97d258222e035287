"""From prompts to pictures: one loop over any diffusers scheduler, guided by functions around its seam."""
