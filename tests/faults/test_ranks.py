"""One of several processes fails: the others end with a message, and the run can be resumed."""

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
from tests.faults.accidents import cause_accident
from tests.faults.commands import STEPS, start_by_hand, words
from tests.faults.compare import differing_files, log
from tests.faults.subjects import line
from tests.training import tiny_stage1
from tests.training.children import in_a_child
from tests.training.two_processes import apart


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by one process, uninterrupted."""
    root = tmp_path_factory.mktemp("alone")
    assert main_stage1(words(1, model, root)) == 0
    return root


def assert_same_run(root: Path, alone: Path) -> None:
    assert [line["step"] for line in log(root)] == [line["step"] for line in log(alone)]
    for record, expected in zip(log(root), log(alone), strict=True):
        record, expected = record.get("validation", record), expected.get("validation", expected)
        assert record == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert apart(root, alone, STEPS)[0] < 1e-5


@pytest.mark.nightly
def test_killed_rank_ends_the_others_and_the_run_resumes(tmp_path: Path, model: Path, alone: Path) -> None:
    """One process resumes the run of two with the same total batch; numbers agree to rounding."""
    root = tmp_path / "run"
    module = ["-m", "tests.faults.accidents", "kill", "1", "5", "1", *words(1, model, root, batch=1)]
    survivor, killed = start_by_hand(module, 2, tmp_path / "output")
    try:
        assert killed.wait(120) == -signal.SIGKILL
        since = time.monotonic()
        assert survivor.wait(60) == 75
        assert time.monotonic() - since < 30
    finally:
        survivor.kill()
        killed.kill()
    output = (tmp_path / "output" / "output-0.txt").read_text()
    assert "error: process 0 lost contact with another process of this run and ends too" in output
    assert "Traceback" not in output
    assert (root / "checkpoint-4").is_dir()
    assert main_stage1(words(1, model, root)) == 0
    assert_same_run(root, alone)


@pytest.mark.slow
def test_killed_data_loader_worker_is_a_user_error(
    tmp_path: Path, model: Path, alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original_take_step = Loop.take_step

    def take_step(self: Loop, micro_batches: Any) -> None:
        if self.step == 5:
            cause_accident("worker")
            time.sleep(5)  # interrupted by the signal
        original_take_step(self, micro_batches)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "take_step", take_step)
        assert main_stage1([*words(1, model, tmp_path), "--dataloader_num_workers", "1"]) == 2
    assert "error: a data loader worker died (" in capsys.readouterr().err
    assert main_stage1(words(1, model, tmp_path)) == 0
    assert log(tmp_path) == log(alone)
    assert not differing_files(tmp_path / f"checkpoint-{STEPS}", alone / f"checkpoint-{STEPS}")


def test_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    """A killed launcher leaves its processes behind, and the command is repeated."""
    root = tmp_path / "run"
    child = in_a_child(lambda: line().start(root, max_train_steps=100_000, checkpointing_steps=1000).run())
    try:
        deadline = time.monotonic() + 120
        while not (root / "log.jsonl").exists():
            assert time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0), "the child does not train"
            time.sleep(0.02)
        with pytest.raises(UserError, match=r"another process is training in .*run"):
            line().start(root, max_train_steps=100_000, checkpointing_steps=1000).run()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert line().start(root).run().finished, "what was killed holds nothing"
