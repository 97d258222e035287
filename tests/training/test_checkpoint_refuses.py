"""Checkpoints, configurations and logs with invalid content are user errors of one sentence."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dpt.errors import UserError
from dpt.training.engine import run_folder
from dpt.training.engine.logging import read_log
from dpt.training.engine.run_folder import RunConfig
from tests.training.toy import loop

DEEP = "[" * 100_000


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return run_folder.save(tmp_path, 7, {"weights": {"a": torch.ones(4)}}, {"seed": 1})


def write_with_checksum(folder: Path, **files: str | bytes) -> None:
    """Write files and their checksums, as an attacker can."""
    manifest = json.loads((folder / run_folder.MANIFEST).read_text())
    for name, content in files.items():
        file = folder / name.replace("_", ".")
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        facts = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        manifest[file.name] = facts
    (folder / run_folder.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["../up.safetensors", "/etc/hostname", "a/b.safetensors"])
def test_manifest_may_only_name_files_in_its_folder(saved: Path, name: str) -> None:
    (saved.parent / "up.safetensors").write_bytes(b"x")
    manifest = json.loads((saved / run_folder.MANIFEST).read_text())
    facts = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    (saved / run_folder.MANIFEST).write_text(json.dumps({**manifest, name: facts}))
    with pytest.raises(UserError, match=r"which is not a file name"):
        run_folder.load(saved)


def test_files_missing_from_the_manifest_are_refused(saved: Path) -> None:
    save_file({"evil": torch.ones(1)}, saved / "more.safetensors")
    with pytest.raises(UserError, match=r"does not list more.safetensors"):
        run_folder.load(saved)


def test_manifest_without_state_is_refused(saved: Path) -> None:
    manifest = json.loads((saved / run_folder.MANIFEST).read_text())
    del manifest[run_folder.STATE]
    (saved / run_folder.MANIFEST).write_text(json.dumps(manifest))
    assert run_folder.newest_good(saved.parent) is None
    with pytest.raises(UserError, match=r"does not list state.json"):
        run_folder.load(saved)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", DEEP, '{"step": "7"}', '{"step": true}', '{"step": -1}', "9" * 5000, "\udcff"]
)
def test_invalid_state_is_refused(saved: Path, text: str) -> None:
    write_with_checksum(saved, state_json=text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"state.json (cannot be read|has no valid step)"):
        run_folder.load(saved)


@pytest.mark.parametrize(
    "change",
    [{"config": []}, {"config": None}, {"images": "48"}, {"meters": "loss"}, {"meters": [1]}, {"meters": None},
     {"bad_in_a_row": True}, {"bad_in_a_row": None}, {"step": True}, {"meters": ["loss"]}],
)  # fmt: skip
def test_invalid_state_with_valid_checksum_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    loop(tmp_path, max_train_steps=4).run()
    folder = tmp_path / "checkpoint-4"
    state = json.loads((folder / run_folder.STATE).read_text())
    write_with_checksum(folder, state_json=json.dumps({**state, **change}))
    name = next(iter(change))
    with pytest.raises(UserError, match=f"state.json.*({name}|step)|losses in the checkpoint .*checkpoint-4"):
        loop(tmp_path, max_train_steps=8).run()


def test_tensors_of_other_shape_are_refused(tmp_path: Path) -> None:
    loop(tmp_path, max_train_steps=4).run()
    folder = tmp_path / "checkpoint-4"
    save_file({"9.weight|exp_avg": torch.ones(2)}, folder / "moments.safetensors")
    write_with_checksum(folder, moments_safetensors=(folder / "moments.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"moments '9.weight\|exp_avg' that do not fit"):
        loop(tmp_path, max_train_steps=8).run()


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]"])
def test_invalid_safetensors_file_is_refused(saved: Path, content: bytes) -> None:
    write_with_checksum(saved, weights_safetensors=content)
    with pytest.raises(UserError, match=r"weights.safetensors is truncated or not a safetensors file"):
        run_folder.load(saved)


def test_named_pipe_instead_of_manifest_or_config_is_refused(saved: Path, tmp_path: Path) -> None:
    (saved / run_folder.MANIFEST).unlink()
    for pipe in (saved / run_folder.MANIFEST, tmp_path / run_folder.CONFIG):
        os.mkfifo(pipe)
    with pytest.raises(UserError, match="not a regular file but a named pipe"):
        run_folder.load(saved)
    with (
        pytest.raises(UserError, match="not a regular file but a named pipe"),
        run_folder.claimed(tmp_path, RunConfig({"seed": 1})),
    ):
        pytest.fail("the folder was claimed")


@pytest.mark.parametrize("text", [DEEP, "9" * 5000, "[1]"])
def test_invalid_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / run_folder.CONFIG).write_text(text)
    message = r"config\.json (cannot be read|is not the configuration)"
    with pytest.raises(UserError, match=message), run_folder.claimed(tmp_path, RunConfig({"seed": 1})):
        pytest.fail("the invalid config was accepted")


@pytest.mark.parametrize(
    "line", [1.5, [], "x", {"loss": 1}, {"step": "1"}, {"step": 1, "loss": "x"}, {"step": 1, "validation": [0.5]},
             {"step": 1, "validation": {"itm": "x"}}, {"step": float("inf")}, {"step": 10**400}],
)  # fmt: skip
def test_invalid_log_is_refused(tmp_path: Path, line: Any) -> None:
    (tmp_path / run_folder.LOG).write_text('{"step": 1, "loss": 0.5}\n' + json.dumps(line) + "\n")
    with pytest.raises(UserError, match=r"is not a log of this project"):
        read_log(tmp_path)


@pytest.mark.parametrize("step", ["Infinity", "1" + "0" * 400, "NaN", '"x"', "null"])
def test_rewind_drops_log_lines_without_a_valid_step(tmp_path: Path, step: str) -> None:
    (tmp_path / run_folder.LOG).write_text(f'{{"step": 1}}\n{{"step": {step}}}\n')
    run_folder.rewind(tmp_path, 5)
    assert (tmp_path / run_folder.LOG).read_text() == '{"step": 1}\n'
