"""A disk that fills up or cannot be written to: one sentence, exit code 2, and what was saved stays good."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dpt.errors import run_command
from dpt.training.engine import checkpoint
from dpt.training.engine.loop import Loop
from tests.faults.comparing import accepted, differences
from tests.faults.disks import can_mount, limit_files, make_read_only, mount_memory, own_mounts, run_in_a_child
from tests.faults.subjects import WHOLE, Subject


@pytest.fixture(scope="module")
def mounting() -> None:
    if not can_mount():
        pytest.skip("nothing can be mounted here: neither root nor allowed a user namespace")


def train(one: Loop) -> int:
    return run_command(one.run)


def sentence(said: str) -> str:
    (found,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    return found


@pytest.mark.parametrize("kib", [24, 40, 64, 100])
def test_a_disk_that_fills_up(mounting: None, subject: Subject, reference: Path, tmp_path: Path, kib: int) -> None:
    """However far it came: it goes on when there is room, and no number is another."""

    def work() -> None:
        own_mounts()
        mount_memory(tmp_path, kib)
        root = tmp_path / "run"
        assert train(subject.begin(root, **WHOLE)) == 2
        assert not differences(root, reference)
        print("complete:", len(accepted(root)))
        mount_memory(tmp_path, 16 * 1024, again=True)
        assert train(subject.begin(root, **WHOLE)) == 0
        assert not differences(root, reference)
        assert len(accepted(root)) == subject.steps

    code, said = run_in_a_child(work)
    assert code == 0, said
    assert os.strerror(errno.ENOSPC) in sentence(said)


def test_a_disk_that_becomes_read_only(mounting: None, subject: Subject, reference: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"

    def work() -> None:
        own_mounts()
        one = subject.begin(root, **WHOLE)
        ordinary = one._save

        def save() -> None:
            ordinary()
            if one.step == 3:
                make_read_only(tmp_path)

        one._save = save  # type: ignore[method-assign]
        assert train(one) == 2

    code, said = run_in_a_child(work)
    assert code == 0, said
    assert os.strerror(errno.EROFS) in sentence(said)
    assert [folder.name for folder in accepted(root)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert not differences(root, reference)
    subject.begin(root, **WHOLE).run()
    assert not differences(root, reference)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_read_only_folder_is_refused_before_anything_is_trained(
    mounting: None, subject: Subject, tmp_path: Path, steps: int
) -> None:
    """Where a run would begin, and where one would go on."""
    if steps:
        subject.begin(tmp_path / "run", max_train_steps=steps).run()

    def work() -> None:
        own_mounts()
        make_read_only(tmp_path)
        one = subject.begin(tmp_path / "run")
        one.take_step = lambda micro_batches: pytest.fail("it has begun to train")  # type: ignore[method-assign]
        assert train(one) == 2

    code, said = run_in_a_child(work)
    assert code == 0, said
    assert os.strerror(errno.EROFS) in sentence(said)


def test_files_that_may_not_grow(subject: Subject, reference: Path, tmp_path: Path) -> None:
    """Needs no mounting: a limit on the size of files, as some batch systems set it."""

    def work() -> None:
        limit_files(400)
        assert train(subject.begin(tmp_path / "run", **WHOLE)) == 2

    code, said = run_in_a_child(work)
    assert code == 0, said
    assert os.strerror(errno.EFBIG) in sentence(said)
    assert not differences(tmp_path / "run", reference)
    assert not list(tmp_path.rglob("*.tmp"))
    subject.begin(tmp_path / "run", **WHOLE).run()
    assert not differences(tmp_path / "run", reference)
    assert checkpoint.newest_good(tmp_path / "run") is not None
