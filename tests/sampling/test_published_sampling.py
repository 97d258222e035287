"""The published schedule of a correction gives the same images at another cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_sampling import PublishedState

from dpt.sampling.loop import denoise
from dpt.sampling.options import Correction
from dpt.sampling.self_correction import SelfCorrection
from tests.sampling.test_self_correction import World, pocket

__all__ = ["pocket"]


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_published_schedule_gives_the_same_latents(scheduler: str, pocket: World, tmp_path: Path) -> None:
    correction = Correction(20.0, "state")
    denoiser, hooks = pocket.parts(correction)
    assert isinstance(denoiser, SelfCorrection)
    ours = denoise(denoiser, pocket.scheduler(scheduler), pocket.noise, 6, hooks=hooks)
    published = PublishedState(denoiser)
    theirs = denoise(published, pocket.scheduler(scheduler), pocket.noise, 6, hooks=(published,))
    plain = denoise(denoiser.uncorrected, pocket.scheduler(scheduler), pocket.noise, 6)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - plain).abs().max() > 1e-3, "the correction moves something"
