"""A damaged checkpoint is skipped with a warning, or refused if it was named."""

from __future__ import annotations

import json
import random
import shutil
from itertools import cycle
from pathlib import Path

import pytest

from dpt.errors import UserError, run_command
from dpt.training.engine import run_folder
from tests.faults.compare import differences, log
from tests.faults.damage import flip, flip_bits
from tests.faults.disks import run_in_a_child
from tests.faults.subjects import WHOLE, Subject

FILES = ("average.safetensors", "manifest.json", "meters.safetensors", "moments.safetensors", "state.json",
         "weights.safetensors")  # fmt: skip


@pytest.fixture
def root(reference: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "run"))


def test_flipped_bits_are_detected(reference: Path, tmp_path: Path) -> None:
    """Every ninth bit; `python -m tests.faults` flips all of them."""
    folder = Path(shutil.copytree(reference / "checkpoint-6", tmp_path / "checkpoint-6"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    flips = [bit for name in FILES for bit in flip_bits(folder, name, every=9)]
    assert len(flips) > 500 and all(bit.noticed for bit in flips)
    assert run_folder.fault(folder) is None, "each was restored"


KINDS = ("cut short", "emptied", "a flipped bit", "missing")


@pytest.mark.parametrize(
    ("name", "kind"), [*zip(FILES, cycle(KINDS), strict=False), ("weights.safetensors", "missing")]
)
def test_damaged_newest_checkpoint_is_skipped_or_refused_by_name(
    subject: Subject, reference: Path, root: Path, name: str, kind: str
) -> None:
    file, rng = root / "checkpoint-6" / name, random.Random(f"{name} {kind}")
    if kind == "cut short":
        file.write_bytes(file.read_bytes()[: rng.randrange(1, file.stat().st_size)])
    elif kind == "emptied":
        file.write_bytes(b"")
    elif kind == "a flipped bit":
        flip(file, rng.randrange(8 * file.stat().st_size))
    else:
        file.unlink()
    code, output = run_in_a_child(lambda: refused(subject, root, "checkpoint-6"))
    assert code == 0, output
    assert "Traceback" not in output
    assert f"error: checkpoint {root / 'checkpoint-6'} cannot be used: " in output
    assert not list(root.glob("set-aside-*")), "nothing was changed"
    code, output = run_in_a_child(lambda: subject.start(root, **WHOLE).run())
    assert code == 0, output
    assert f"warning: skipping {root / 'checkpoint-6'}: " in output
    assert "continuing after step 5" in output
    assert [path.name for path in root.glob("set-aside-*")] == ["set-aside-checkpoint-6"]
    assert not differences(root, reference) and log(root) == log(reference)


def refused(subject: Subject, root: Path, resume: str) -> None:
    assert run_command(lambda: subject.start(root, **WHOLE).run(resume=resume)) == 2


def test_run_with_only_damaged_checkpoints_is_refused(subject: Subject, root: Path) -> None:
    for folder in root.glob("checkpoint-*"):
        (folder / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the checkpoints in .* can be used"):
        subject.start(root).run()


@pytest.mark.parametrize("manifest", [{}, {"weights.safetensors": None}, [], None, 3], ids=str)
def test_incomplete_manifest_is_a_fault(root: Path, manifest: object) -> None:
    (root / "checkpoint-6" / "manifest.json").write_text(json.dumps(manifest))
    assert run_folder.fault(root / "checkpoint-6") is not None


def test_unlisted_file_is_a_fault(root: Path) -> None:
    folder = root / "checkpoint-6"
    shutil.copy(folder / "weights.safetensors", folder / "more.safetensors")
    assert run_folder.fault(folder) == "its manifest.json does not list more.safetensors"


def test_damaged_checkpoints_do_not_count_towards_the_limit(subject: Subject, root: Path) -> None:
    """Otherwise a limit of one would delete each valid checkpoint as soon as it is saved."""
    (root / "checkpoint-6" / "state.json").unlink()
    subject.start(root, checkpoints_total_limit=1).run()
    assert [path.name for path in sorted(root.glob("*checkpoint-*"))] == ["checkpoint-6", "set-aside-checkpoint-6"]
    assert run_folder.fault(root / "checkpoint-6") is None


def test_finished_run_deletes_old_checkpoints_of_a_killed_one(subject: Subject, root: Path) -> None:
    assert subject.start(root, checkpoints_total_limit=2).run().finished
    assert sorted(path.name for path in root.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]


def test_resuming_from_an_earlier_checkpoint_sets_later_ones_aside(subject: Subject, root: Path) -> None:
    run = subject.start(root, **WHOLE, max_train_steps=4)
    run.run(resume="checkpoint-2", reset_optimizer=True)
    assert sorted(path.name for path in root.glob("set-aside-*")) == [
        f"set-aside-checkpoint-{step}" for step in (3, 4, 5, 6)
    ]
    newest = run_folder.newest_good(root)
    assert newest is not None and newest.name == "checkpoint-4"
    run = subject.start(root, **WHOLE)
    run.run(resume="checkpoint-2")
    assert len(list(root.glob("set-aside-checkpoint-3*"))) == 2, "nor is anything written over"
