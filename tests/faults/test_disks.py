"""A full or read-only disk is one sentence and exit code 2, and saved checkpoints stay valid."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dpt.errors import run_command
from dpt.training.engine import run_folder
from dpt.training.engine.loop import Loop
from tests.faults.compare import accepted, differences
from tests.faults.disks import can_mount, limit_files, make_read_only, mount_memory, own_mounts, run_in_a_child
from tests.faults.subjects import WHOLE, Subject


@pytest.fixture(scope="module")
def mounting() -> None:
    if not can_mount():
        pytest.skip("nothing can be mounted here: neither root nor allowed a user namespace")


def train(run: Loop) -> int:
    return run_command(run.run)


def sentence(output: str) -> str:
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in output
    return error


@pytest.mark.parametrize("kib", [24, 40, 64, 100])
def test_run_resumes_after_a_full_disk(
    mounting: None, subject: Subject, reference: Path, tmp_path: Path, kib: int
) -> None:
    """Once there is space, it resumes and all results are the same."""

    def work() -> None:
        own_mounts()
        mount_memory(tmp_path, kib)
        root = tmp_path / "run"
        assert train(subject.start(root, **WHOLE)) == 2
        assert not differences(root, reference)
        print("complete:", len(accepted(root)))
        mount_memory(tmp_path, 16 * 1024, again=True)
        assert train(subject.start(root, **WHOLE)) == 0
        assert not differences(root, reference)
        assert len(accepted(root)) == subject.steps

    code, output = run_in_a_child(work)
    assert code == 0, output
    assert os.strerror(errno.ENOSPC) in sentence(output)


def test_run_resumes_after_a_read_only_disk(mounting: None, subject: Subject, reference: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"

    def work() -> None:
        own_mounts()
        run = subject.start(root, **WHOLE)
        original_save = run._save

        def save() -> None:
            original_save()
            if run.step == 3:
                make_read_only(tmp_path)

        run._save = save  # type: ignore[method-assign]
        assert train(run) == 2

    code, output = run_in_a_child(work)
    assert code == 0, output
    assert os.strerror(errno.EROFS) in sentence(output)
    assert [folder.name for folder in accepted(root)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert not differences(root, reference)
    subject.start(root, **WHOLE).run()
    assert not differences(root, reference)


@pytest.mark.parametrize("steps", [0, 3])
def test_read_only_folder_is_refused_before_training(
    mounting: None, subject: Subject, tmp_path: Path, steps: int
) -> None:
    """A new run and a resumed one."""
    if steps:
        subject.start(tmp_path / "run", max_train_steps=steps).run()

    def work() -> None:
        own_mounts()
        make_read_only(tmp_path)
        run = subject.start(tmp_path / "run")
        run.take_step = lambda micro_batches: pytest.fail("it started to train")  # type: ignore[method-assign]
        assert train(run) == 2

    code, output = run_in_a_child(work)
    assert code == 0, output
    assert os.strerror(errno.EROFS) in sentence(output)


def test_run_resumes_after_a_file_size_limit(subject: Subject, reference: Path, tmp_path: Path) -> None:
    """Needs no mounting: a limit on file size, as some batch systems set it."""

    def work() -> None:
        limit_files(400)
        assert train(subject.start(tmp_path / "run", **WHOLE)) == 2

    code, output = run_in_a_child(work)
    assert code == 0, output
    assert os.strerror(errno.EFBIG) in sentence(output)
    assert not differences(tmp_path / "run", reference)
    assert not list(tmp_path.rglob("*.tmp"))
    subject.start(tmp_path / "run", **WHOLE).run()
    assert not differences(tmp_path / "run", reference)
    assert run_folder.newest_good(tmp_path / "run") is not None
