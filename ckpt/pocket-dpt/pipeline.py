"""What `custom_pipeline=` of diffusers opens this folder with."""

from dpt.sampling.pipeline_families import StableDiffusionDPTPipeline

__all__ = ["StableDiffusionDPTPipeline"]
