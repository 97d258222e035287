from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from dpt.errors import UserError
from dpt.training.engine import run_folder
from tests.training.children import in_a_child


def saved(root: Path, step: int) -> Path:
    tensors = {"weights": {"a": torch.full((64,), float(step)), "b": torch.ones(2, 2)}}
    return run_folder.save(root, step, tensors, {"note": "x"})


def test_saved_checkpoint_loads_unchanged(tmp_path: Path) -> None:
    folder = saved(tmp_path, 7)
    tensors, state = run_folder.load(folder)
    assert torch.equal(tensors["weights"]["a"], torch.full((64,), 7.0))
    assert state == {"step": 7, "note": "x"}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-7"], "nothing temporary is left"


def test_newest_checkpoint_is_chosen_by_step_number(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        saved(tmp_path, step)
    newest = run_folder.newest_good(tmp_path)
    assert newest is not None and newest.name == "checkpoint-100"


def _truncate(folder: Path) -> None:
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def _flip_a_bit(folder: Path) -> None:
    file = folder / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def _lose(name: str):  # type: ignore[no-untyped-def]
    return lambda folder: (folder / name).unlink()


def _garble_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"weights.safetensors": {"bytes"')


DAMAGES = {
    "truncated": (_truncate, "differs from what was saved"),
    "flipped bit": (_flip_a_bit, "differs from what was saved"),
    "no manifest": (_lose("manifest.json"), "not written completely"),
    "no weights": (_lose("weights.safetensors"), "is missing"),
    "garbled manifest": (_garble_manifest, "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_skipped_with_a_warning_and_refused_by_name(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 1)
    bad = saved(tmp_path, 2)
    apply_damage, message = DAMAGES[damage]
    apply_damage(bad)
    newest = run_folder.newest_good(tmp_path)
    assert newest is not None and newest.name == "checkpoint-1"
    assert "warning: skipping" in capsys.readouterr().out
    with pytest.raises(UserError, match=message):
        run_folder.load(bad)


def test_keep_newest_removes_older_checkpoints(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        saved(tmp_path, step)
    run_folder.keep_newest(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]


def test_kill_during_save_leaves_a_loadable_checkpoint(tmp_path: Path) -> None:
    def save_for_ever() -> None:
        for step in itertools.count(1):
            run_folder.save(tmp_path, step, {"w": {"a": torch.full((200_000,), float(step))}}, {})
            run_folder.keep_newest(tmp_path, 2)

    child = in_a_child(save_for_ever)
    while not (tmp_path / "checkpoint-3").exists():
        time.sleep(0.001)
    time.sleep(0.0137)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    newest = run_folder.newest_good(tmp_path)
    assert newest is not None
    tensors, state = run_folder.load(newest)
    assert torch.equal(tensors["w"]["a"], torch.full((200_000,), float(state["step"])))
