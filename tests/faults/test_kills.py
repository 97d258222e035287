"""Killed at any moment and gone on with: the quick part of what `python -m tests.faults` does a hundred times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.comparing import differences
from tests.faults.kills import BEGUN, Kill, campaign, strike, uninterrupted
from tests.faults.subjects import Subject, line, stage1, stage2
from tests.training import tiny_stage1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model"))


def test_wherever_a_save_is_cut(tmp_path: Path) -> None:
    tally = campaign(line(), tmp_path, 24, seed=0, say=print)
    assert not tally.differences
    assert tally.kills == 24 and tally.inside_a_save >= 14 and tally.partial_folders_met >= 8
    assert tally.most_kills_of_one_run >= 3, "also resumed more than once in an epoch"


@pytest.mark.parametrize("stage", [stage1, stage2])
def test_a_stage_that_is_killed(tmp_path: Path, model: Path, stage: Callable[[Path], Subject]) -> None:
    tally = campaign(stage(model), tmp_path, 2, seed=1, say=print)
    assert not tally.differences
    assert tally.kills == 2 and tally.inside_a_save >= 1


def test_the_harness_sees_what_is_not_the_same(tmp_path: Path) -> None:
    """The same line, but taught at another rate: were it not noticed, nothing would be."""
    other = Subject("line", lambda root, **changes: line().begin(root, **{**changes, "learning_rate": 2e-3}))
    pace = uninterrupted(line(), tmp_path / "reference", tmp_path / "pace.json")
    heard = strike(other, tmp_path / "run", Kill("saving", 0.5, 0.6), pace)
    assert heard is not None and heard.count(BEGUN) >= 4
    found = differences(tmp_path / "run", tmp_path / "reference")
    assert any("weights" in one for one in found) and any("the log" in one for one in found)
