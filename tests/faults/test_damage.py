"""A checkpoint that is cut short or has a bit that is not as it was: passed over aloud, or refused if it was named."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from dpt.errors import UserError, run_command
from dpt.training.engine import checkpoint
from tests.faults.comparing import differences, log
from tests.faults.damage import bits_tried, flip
from tests.faults.disks import run_in_a_child
from tests.faults.subjects import WHOLE, Subject

FILES = ("average.safetensors", "manifest.json", "meters.safetensors", "moments.safetensors", "state.json",
         "weights.safetensors")  # fmt: skip


@pytest.fixture
def root(reference: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "run"))


def test_a_bit_of_each_byte(reference: Path, tmp_path: Path) -> None:
    """Which one of the eight goes round. `python -m tests.faults` tries them all."""
    folder = Path(shutil.copytree(reference / "checkpoint-6", tmp_path / "checkpoint-6"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    tried = [tries for name in FILES for tries in bits_tried(folder, name, every=9)]
    assert len(tried) > 500 and not [one for one in tried if not one.noticed]
    assert checkpoint.fault(folder) is None, "each was put back"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["cut short", "emptied", "a flipped bit", "gone"])
def test_a_damaged_newest_checkpoint(subject: Subject, reference: Path, root: Path, name: str, how: str) -> None:
    file, rng = root / "checkpoint-6" / name, random.Random(f"{name} {how}")
    if how == "cut short":
        file.write_bytes(file.read_bytes()[: rng.randrange(1, file.stat().st_size)])
    elif how == "emptied":
        file.write_bytes(b"")
    elif how == "a flipped bit":
        flip(file, rng.randrange(8 * file.stat().st_size))
    else:
        file.unlink()
    code, told = run_in_a_child(lambda: refused(subject, root, "checkpoint-6"))
    assert code == 0, told
    assert "Traceback" not in told
    assert f"error: checkpoint {root / 'checkpoint-6'} cannot be used: " in told
    assert not list(root.glob("set-aside-*")), "nothing was changed"
    code, said = run_in_a_child(lambda: subject.begin(root, **WHOLE).run())
    assert code == 0, said
    assert f"warning: passing over {root / 'checkpoint-6'}: " in said
    assert "continuing after step 5" in said
    assert [path.name for path in root.glob("set-aside-*")] == ["set-aside-checkpoint-6"]
    assert not differences(root, reference) and log(root) == log(reference)


def refused(subject: Subject, root: Path, resume: str) -> None:
    assert run_command(lambda: subject.begin(root, **WHOLE).run(resume=resume)) == 2


def test_all_damaged(subject: Subject, root: Path) -> None:
    for folder in root.glob("checkpoint-*"):
        (folder / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the checkpoints in .* can be used"):
        subject.begin(root).run()


@pytest.mark.parametrize("manifest", [{}, {"weights.safetensors": None}, [], None, 3], ids=str)
def test_a_manifest_that_lists_too_little(root: Path, manifest: object) -> None:
    """With nothing to check, nothing would be found wrong."""
    (root / "checkpoint-6" / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.fault(root / "checkpoint-6") is not None


def test_a_file_that_nobody_lists(root: Path) -> None:
    folder = root / "checkpoint-6"
    shutil.copy(folder / "weights.safetensors", folder / "more.safetensors")
    assert checkpoint.fault(folder) == "its manifest.json says nothing of more.safetensors"


def test_a_damaged_checkpoint_is_not_what_is_kept(subject: Subject, root: Path) -> None:
    """Were it among the newest for ever, a limit of one would throw each good one away as soon as it is saved."""
    (root / "checkpoint-6" / "state.json").unlink()
    subject.begin(root, checkpoints_total_limit=1).run()
    assert [path.name for path in sorted(root.glob("*checkpoint-*"))] == ["checkpoint-6", "set-aside-checkpoint-6"]
    assert checkpoint.fault(root / "checkpoint-6") is None


def test_a_finished_run_still_throws_away_what_a_killed_one_had_left(subject: Subject, root: Path) -> None:
    assert subject.begin(root, checkpoints_total_limit=2).run().finished
    assert sorted(path.name for path in root.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]


def test_going_on_from_an_earlier_one_makes_the_later_ones_another_runs(subject: Subject, root: Path) -> None:
    """Killed on the way, the run goes on from what it saved last, not from what was saved before it began anew."""
    one = subject.begin(root, **WHOLE, max_train_steps=4)
    one.run(resume="checkpoint-2", reset_optimizer=True)
    assert sorted(path.name for path in root.glob("set-aside-*")) == [
        f"set-aside-checkpoint-{step}" for step in (3, 4, 5, 6)
    ]
    newest = checkpoint.newest_good(root)
    assert newest is not None and newest.name == "checkpoint-4"
    one = subject.begin(root, **WHOLE)
    one.run(resume="checkpoint-2")
    assert len(list(root.glob("set-aside-checkpoint-3*"))) == 2, "nor is anything written over"
