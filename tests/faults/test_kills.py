"""Runs killed at any moment resume bit for bit; `python -m tests.faults` does this a hundred times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.compare import differences
from tests.faults.kills import SAVE_BEGAN, Kill, campaign, run_and_kill, run_uninterrupted
from tests.faults.subjects import Subject, hps, line, stage1, stage2, transformer
from tests.training import tiny_stage1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
def test_killed_saves_resume_bit_for_bit(tmp_path: Path) -> None:
    """At given file operations, so that every machine kills at the same moments."""
    tally = campaign(line(), tmp_path, 16, seed=0, say=print, kinds=("event",))
    assert not tally.differences
    assert tally.kills == tally.inside_a_save == 16 and tally.partial_folders_met >= 6
    assert tally.most_kills_of_one_run >= 3, "also resumed more than once in an epoch"


@pytest.mark.slow
def test_runs_killed_at_any_time_resume_bit_for_bit(tmp_path: Path) -> None:
    tally = campaign(line(), tmp_path, 8, seed=0, say=print, kinds=("anywhere", "saving"))
    assert not tally.differences and tally.kills == 8


@pytest.mark.slow
@pytest.mark.parametrize("stage", [stage1, stage2, transformer, hps])
def test_killed_stages_resume_bit_for_bit(tmp_path: Path, model: Path, stage: Callable[[Path], Subject]) -> None:
    tally = campaign(stage(model), tmp_path, 2, seed=1, say=print, kinds=("event", "anywhere"))
    assert not tally.differences
    assert tally.kills == 2 and tally.inside_a_save >= 1


def test_comparison_detects_another_learning_rate(tmp_path: Path) -> None:
    other = Subject("line", lambda root, **changes: line().start(root, **{**changes, "learning_rate": 2e-3}))
    duration = run_uninterrupted(line(), tmp_path / "reference", tmp_path / "duration.json")
    signals = run_and_kill(other, tmp_path / "run", Kill("event", 0.6), duration)
    assert signals is not None and signals.count(SAVE_BEGAN) >= 3
    different = differences(tmp_path / "run", tmp_path / "reference")
    assert any("weights" in difference for difference in different) and any(
        "the log" in difference for difference in different
    )
