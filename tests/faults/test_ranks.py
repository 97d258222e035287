"""One of several processes has an accident: the others say so and end, and the run can be gone on with."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from dpt.cli.train.stages import main_stage1
from dpt.errors import UserError
from dpt.training.engine.loop import Loop
from tests.faults.commands import STEPS, start_by_hand, words
from tests.faults.comparing import log, unlike
from tests.faults.dying import have_an_accident
from tests.faults.subjects import line
from tests.training import tiny_stage1
from tests.training.children import in_a_child
from tests.training.two_processes import apart


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by one process, left in peace."""
    root = tmp_path_factory.mktemp("alone")
    assert main_stage1(words(1, model, root)) == 0
    return root


def assert_same_run(root: Path, alone: Path) -> None:
    assert [line["step"] for line in log(root)] == [line["step"] for line in log(alone)]
    for mine, theirs in zip(log(root), log(alone), strict=True):
        mine, theirs = mine.get("validation", mine), theirs.get("validation", theirs)
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert apart(root, alone, STEPS)[0] < 1e-5


def test_a_rank_that_is_killed(tmp_path: Path, model: Path, alone: Path) -> None:
    """Then one process goes on where two were, with as large a batch: no number is another by more than rounding."""
    root = tmp_path / "run"
    module = ["-m", "tests.faults.dying", "kill", "1", "5", "1", *words(1, model, root, batch=1)]
    left, killed = start_by_hand(module, 2, tmp_path / "said")
    try:
        assert killed.wait(120) == -signal.SIGKILL
        since = time.monotonic()
        assert left.wait(60) == 75
        assert time.monotonic() - since < 30
    finally:
        left.kill()
        killed.kill()
    said = (tmp_path / "said" / "said-0.txt").read_text()
    assert "error: process 0 hears nothing more of another process of this run, so it ends too" in said
    assert "Traceback" not in said
    assert (root / "checkpoint-4").is_dir()
    assert main_stage1(words(1, model, root)) == 0
    assert_same_run(root, alone)


def test_a_process_that_prepares_batches_is_killed(
    tmp_path: Path, model: Path, alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ordinary = Loop.take_step

    def take_step(self: Loop, micro_batches: Any) -> None:
        if self.step == 5:
            have_an_accident("worker")
            time.sleep(5)  # it will not be that long: news of it comes as a signal
        ordinary(self, micro_batches)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "take_step", take_step)
        assert main_stage1([*words(1, model, tmp_path), "--dataloader_num_workers", "1"]) == 2
    assert "error: a process that prepares batches is gone (" in capsys.readouterr().err
    assert main_stage1(words(1, model, tmp_path)) == 0
    assert log(tmp_path) == log(alone)
    assert not unlike(tmp_path / f"checkpoint-{STEPS}", alone / f"checkpoint-{STEPS}")


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    """A launcher that was killed leaves its processes behind, and the command is given once more."""
    root = tmp_path / "run"
    child = in_a_child(lambda: line().begin(root, max_train_steps=100_000, checkpointing_steps=1000).run())
    try:
        while not (root / "log.jsonl").exists():
            time.sleep(0.02)
        with pytest.raises(UserError, match=r"another process is training in .*run"):
            line().begin(root, max_train_steps=100_000, checkpointing_steps=1000).run()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert line().begin(root).run().finished, "what was killed holds nothing"
