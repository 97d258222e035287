"""Files made to run code or to be large in memory are refused before that happens."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dpt.adapter.io import FILE_NAME, RECORD
from dpt.checkpoints import open_checkpoint
from dpt.errors import UserError
from tests.checkpoints.making import write
from tests.fuzz.checkpoints import adapter_record, published, small_adapter
from tests.fuzz.limits import MIB, time_limit

SMALL = {"input_proj.weight": torch.ones(4)}


def compressed(file: Path) -> None:
    with zipfile.ZipFile(file) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in members.items():
            new.writestr(name, content)


def test_compressed_checkpoint_is_not_unpacked(tmp_path: Path) -> None:
    file = write(tmp_path, {"a": torch.zeros(64 * MIB // 4)})
    assert file.stat().st_size > 64 * MIB
    compressed(file)
    assert file.stat().st_size < MIB
    with pytest.raises(UserError, match="is compressed, as no checkpoint is"):
        open_checkpoint(file)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(1).expand(10**6, 10**6),
        torch.ones(10**6, 10**6, device="meta"),
        torch.ones(4).to_sparse(),
        torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        torch.ones(4, dtype=torch.int64),
        torch.ones(4, dtype=torch.complex64),
    ],
    ids=["repeated", "without numbers", "sparse", "quantised", "whole", "complex"],
)
def test_tensors_with_missing_data_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(UserError, match="holds more than plain floating-point numbers: a"):
        open_checkpoint(write(tmp_path, {"a": tensor}))


def in_an_archive(file: Path, content: bytes) -> Path:
    """A torch archive with another pickle in it."""
    write(file.parent, {"a": torch.ones(1)})
    with zipfile.ZipFile(file) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w") as new:
        for name, member in members.items():
            new.writestr(name, content if name.endswith("data.pkl") else member)
    return file


LONG_NAME = b"\x80\x02c" + b"a" * 100_000 + b"\nb\n."
LONG_TEXT = b"\x80\x02}X\xa0\x86\x01\x00" + b"a" * 100_000 + b"R."
UNFOLDING = b"\x80\x02)" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60)) + b")R."


@pytest.mark.parametrize("content", [LONG_NAME, LONG_TEXT, UNFOLDING], ids=["long name", "long text", "unfolding"])
def test_expensive_pickles_are_refused_before_loading(tmp_path: Path, content: bytes) -> None:
    """Each would take minutes, or all memory."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / FILE_NAME).write_bytes(content)
    for file in (in_an_archive(tmp_path / FILE_NAME, content), tmp_path / "old" / FILE_NAME):
        with time_limit(2), pytest.raises(UserError, match="holds more than tensors"):
            open_checkpoint(file)


@pytest.mark.parametrize("content", [{1: torch.ones(1)}, {None: torch.ones(1)}, {("a",): torch.ones(1)}])
def test_names_that_are_not_strings_are_refused(tmp_path: Path, content: dict[Any, Any]) -> None:
    with pytest.raises(UserError, match="holds more than plain floating-point numbers"):
        open_checkpoint(write(tmp_path, content))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_dim": 2**40, "nheads": 2}, {"hidden_dim": 2**20, "nheads": 2}, {"dim_feedforward": 2**40},
        {"enc_layers": 10**9}, {"dec_layers": 10**9}, {"token_slots": 2**62}, {"text_width": 2**62},
        {"feature_channels": [8] * 10**5}, {"feature_channels": [2**62]}, {"feature_channels": [-8]},
        {"num_queries_rec": 2**40}, {"position_rows": 2**40}, {"position_rows": -1}, {"dim_feedforward": -1},
        {"nheads": 0}, {"nheads": -2}, {"contrastive_loss_hdim": 2**62}, {"phrase_width": 2**62},
    ],
    ids=str,
)  # fmt: skip
def test_record_with_larger_sizes_than_its_weights_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    file = adapter_record(tmp_path).file
    record = json.loads(file.read_text())
    record["config"] |= change
    file.write_text(json.dumps(record))
    with pytest.raises(UserError):
        open_checkpoint(tmp_path)


def test_unmodified_files_open(tmp_path: Path) -> None:
    adapter_record(tmp_path)
    opened = open_checkpoint(tmp_path)
    assert opened.adapter is not None and (tmp_path / "adapter" / RECORD).exists()
    whole = small_adapter().state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in opened.adapter.state_dict().items())
    for sample in published(tmp_path).samples:
        (tmp_path / FILE_NAME).write_bytes(sample)
        assert open_checkpoint(tmp_path / FILE_NAME).lora is not None
