"""The correction that results from flags and recommended values."""

from __future__ import annotations

import pytest

from dpt.generation_defaults import RecommendedCorrection
from dpt.sampling.options import NO_CORRECTION, Correction, Interval, recommended_correction, resolve_correction

RECOMMENDED = RecommendedCorrection(2.5, "fused", "rms", 0.0, 0.6, measured="the pocket")


def test_factor_alone_means_the_published_correction() -> None:
    """txt2img.py lines 90-94: the state is left as it is, and only the conditional branch sees the shift."""
    for base in (NO_CORRECTION, recommended_correction(RECOMMENDED, 50)):
        assert resolve_correction(base, 0.5) == Correction(0.5, "input", "none", Interval(0, 1), 1)
    assert not resolve_correction(recommended_correction(RECOMMENDED, 50), 0.0).on


def test_given_values_override_single_recommended_values() -> None:
    base = recommended_correction(RECOMMENDED, 25)
    assert resolve_correction(base) == base == Correction(0.1, "fused", "rms", Interval(0, 0.6))
    changed = resolve_correction(base, target="input", end=0.9, every=3)
    assert changed == Correction(0.1, "input", "rms", Interval(0, 0.9), 3)


def test_no_recommendation_means_no_correction() -> None:
    assert recommended_correction(None, 25) == NO_CORRECTION
    assert not resolve_correction(NO_CORRECTION, target="fused").on


@pytest.mark.parametrize("steps", [5, 25, 50])
def test_recommended_factors_sum_to_the_strength_for_any_number_of_steps(steps: int) -> None:
    assert recommended_correction(RECOMMENDED, steps).factor * steps == pytest.approx(2.5)
