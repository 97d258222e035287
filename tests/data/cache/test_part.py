"""Shards, their indices and the manifest, on tensors made without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpt.data.cache.storage import KEY, MANIFEST, CachePart, PartBuilder, UnfinishedPartError, index_file, shard_file
from dpt.errors import DataError, UserError

KEY_OF_A = {"model": "a" * 64, "resolution": 64}
SHAPE = (4, 2, 2)


def rows(first: int) -> Tensor:
    return torch.arange(first, first + 3).float()[:, None, None, None].expand(-1, *SHAPE).contiguous()


def always(name: str, facts: object) -> bool:
    return True


def build_part(folder: Path, shards: int = 2) -> CachePart:
    builder = PartBuilder(folder, KEY_OF_A, ["x", "y"])
    with builder.claimed():
        builder.resume(always)
        for nth in range(len(builder.indices), shards):
            tensors = {"x": rows(3 * nth), "y": rows(3 * nth).to(torch.bfloat16) + 100}
            builder.add([(f"item {3 * nth + i}", [i]) for i in range(3)], tensors, {f"broken {nth}": [0, "why"]})
        return builder.finish()


def test_written_tensors_are_read_back(tmp_path: Path) -> None:
    build_part(tmp_path)
    part = CachePart.open(tmp_path)
    for nth in range(6):
        assert torch.equal(part.read(f"item {nth}", "x"), torch.full(SHAPE, float(nth)))
        assert torch.equal(part.read(f"item {nth}", "y"), torch.full(SHAPE, nth + 100.0, dtype=torch.bfloat16))
        assert part.rows[f"item {nth}"].facts == [nth % 3]
    assert part.key == KEY_OF_A and part.broken == {"broken 0": [0, "why"], "broken 1": [0, "why"]}


def test_no_file_stays_open(tmp_path: Path) -> None:
    part = build_part(tmp_path)
    before = len([*Path("/proc/self/fd").iterdir()])
    tensors_read = [part.read(f"item {nth % 6}", "x") for nth in range(50)]
    assert len(tensors_read) == 50 and len([*Path("/proc/self/fd").iterdir()]) == before
    maps = Path("/proc/self/maps").read_text()
    assert str(tmp_path) not in maps, "no file stays mapped"


def test_shards_have_the_permissions_of_the_manifest(tmp_path: Path) -> None:
    build_part(tmp_path)
    assert shard_file(tmp_path, 0).stat().st_mode == (tmp_path / MANIFEST).stat().st_mode


def test_part_without_manifest_is_unfinished(tmp_path: Path) -> None:
    build_part(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(UnfinishedPartError, match="is not finished: `dpt cache` continues it"):
        CachePart.open(tmp_path)


def test_truncated_shard_is_detected_on_open(tmp_path: Path) -> None:
    build_part(tmp_path)
    file = shard_file(tmp_path, 1)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"shard-00001\.safetensors is corrupted: it has \d+ bytes, not \d+"):
        CachePart.open(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"shard-00001\.safetensors cannot be read: No such file"):
        CachePart.open(tmp_path)


def flip_a_bit(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_flipped_bit_is_detected_on_read(tmp_path: Path) -> None:
    build_part(tmp_path)
    flip_a_bit(shard_file(tmp_path, 1), -1)
    part = CachePart.open(tmp_path)
    assert torch.equal(part.read("item 4", "y"), torch.full(SHAPE, 104.0, dtype=torch.bfloat16)), (
        "the other items are intact"
    )
    with pytest.raises(DataError, match=r"shard-00001\.safetensors is corrupted: the checksum of 'item 5' differs"):
        part.read("item 5", "y")
    flip_a_bit(shard_file(tmp_path, 0), 7)
    with pytest.raises(DataError, match=r"shard-00000\.safetensors cannot be read"):
        CachePart.open(tmp_path).read("item 0", "x")


def test_changed_index_is_refused(tmp_path: Path) -> None:
    build_part(tmp_path)
    file = index_file(shard_file(tmp_path, 0))
    file.write_text(file.read_text().replace("item 0", "item 9"))
    with pytest.raises(DataError, match=r"shard-00000\.json is corrupted: its SHA-256 differs"):
        CachePart.open(tmp_path)
    file.write_text("[]")
    with pytest.raises(DataError, match=r"shard-00000\.json is not the index of a cache"):
        CachePart.open(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": {}, "tensors": [], "shards": []}', "\udcff"])
def test_invalid_manifest_is_refused(tmp_path: Path, content: str) -> None:
    build_part(tmp_path)
    (tmp_path / MANIFEST).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"manifest\.json is not the manifest of a cache"):
        CachePart.open(tmp_path)


@pytest.mark.parametrize("harm", ["truncate", "flip", "index", "lost index", "lost shard"])
def test_damaged_shard_is_rebuilt_identically(tmp_path: Path, harm: str) -> None:
    build_part(tmp_path)
    good = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    file = shard_file(tmp_path, 1)
    match harm:
        case "truncate":
            file.write_bytes(file.read_bytes()[:-9])
        case "flip":
            flip_a_bit(file, -1)
        case "index":
            index_file(file).write_text("{}")
        case "lost index":
            index_file(file).unlink()
        case "lost shard":
            file.unlink()
    builder = PartBuilder(tmp_path, KEY_OF_A, ["x", "y"])
    with builder.claimed():
        (sentence,) = builder.resume(always)
    assert sentence.startswith("shard-00001.safetensors is made again: ")
    assert builder.done == {"item 0", "item 1", "item 2", "broken 0"}
    assert not (tmp_path / MANIFEST).exists(), "the manifest would list a missing shard"
    build_part(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == good


def test_finished_part_stays_usable_while_it_grows(tmp_path: Path) -> None:
    build_part(tmp_path, 1)
    builder = PartBuilder(tmp_path, KEY_OF_A, ["x", "y"])
    with builder.claimed():
        assert builder.resume(always) == []
        builder.add([("more", [])], {"x": rows(0)[:1], "y": rows(0)[:1]}, {})
        assert "more" not in CachePart.open(tmp_path).rows
        assert "more" in builder.finish().rows


def test_changed_key_is_refused(tmp_path: Path) -> None:
    before = build_part(tmp_path).digest
    other = PartBuilder(tmp_path, {**KEY_OF_A, "resolution": 32}, ["x", "y"])
    with (
        pytest.raises(UserError, match=r"was made with other options \(resolution is 64, not 32\): remove it, or give"),
        other.claimed(),
    ):
        pass
    assert CachePart.open(tmp_path).digest == before


def test_other_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with (
        pytest.raises(UserError, match=r"is not a cache and not empty: it has thesis\.tex"),
        PartBuilder(tmp_path, KEY_OF_A, ["x"]).claimed(),
    ):
        pass
    assert not (tmp_path / KEY).exists()


def test_concurrent_writers_are_refused(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from dpt.data.cache.storage import PartBuilder
with PartBuilder(Path({str(tmp_path)!r}), {KEY_OF_A!r}, ["x"]).claimed():
    print("claimed", flush=True)
    input()
"""
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "claimed\n"
        with (
            pytest.raises(UserError, match="another process is writing the cache"),
            PartBuilder(tmp_path, KEY_OF_A, ["x"]).claimed(),
        ):
            pass
        other.kill()
    with PartBuilder(tmp_path, KEY_OF_A, ["x"]).claimed():  # a killed process leaves no lock
        pass


def test_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(UserError, match="cannot be written: it, or a folder above it, is a file"),
        PartBuilder(tmp_path / "file" / "cache", KEY_OF_A, ["x"]).claimed(),
    ):
        pass


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    build_part(tmp_path)
    (tmp_path / ".shard-00002.safetensors.7.tmp").write_text("half")
    build_part(tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert json.loads((tmp_path / KEY).read_text()) == KEY_OF_A
