"""What is optimised: matching, grounding and denoising, as pure functions of tensors, in full precision."""
