"""What is corrected when it is said, half said or not said at all."""

from __future__ import annotations

import pytest

from dpt.sampling.options import NO_CORRECTION, Correction, Interval, recommended_correction, resolve_correction


def test_a_factor_by_itself_means_what_it_means_in_the_published_code() -> None:
    assert resolve_correction(50, True, 0.5) == Correction(0.5, "state", "none", Interval(0, 1), 1)
    assert resolve_correction(50, False, 0.5).on, "who asks for one without an adapter is told, not ignored"


def test_nothing_said_is_the_recommended_one_where_there_is_an_adapter() -> None:
    assert resolve_correction(25, True) == recommended_correction(25)
    assert resolve_correction(25, False) == resolve_correction(25, False, target="fused") == NO_CORRECTION
    assert not resolve_correction(25, True, 0.0).on


def test_what_is_said_changes_that_alone() -> None:
    usual = recommended_correction(25)
    told = resolve_correction(25, True, target="input", end=0.9, every=3)
    assert (told.target, told.interval, told.every) == ("input", Interval(usual.interval.start, 0.9), 3)
    assert (told.factor, told.norm) == (usual.factor, usual.norm)


@pytest.mark.parametrize("steps", [5, 25, 50])
def test_the_whole_way_is_corrected_as_much_in_any_number_of_steps(steps: int) -> None:
    assert recommended_correction(steps).factor * steps == pytest.approx(recommended_correction(25).factor * 25)
