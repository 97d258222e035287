"""Power loss, tested by the order of the calls that flush to disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.faults.subjects import line


def test_checkpoint_files_and_log_are_flushed_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def noted_rename(self: Path, target: Any) -> Path:
        done.append(f"{Path(target).name} is there")
        return rename(self, target)

    run = line().start(tmp_path / "run", max_train_steps=1, validation_steps=0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", noted_fsync)
        patched.setattr(Path, "rename", noted_rename)
        run.run()
    named = done.index("checkpoint-1 is there")
    files = {path.name for path in (tmp_path / "run" / "checkpoint-1").iterdir()}
    assert {*files, "log.jsonl"} < set(done[:named])
    assert done[named - 1].startswith(".checkpoint-1."), "the list of its files too"
    assert done[named + 1] == "run", "and the name itself"
