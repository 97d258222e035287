"""An untrusted cache: names stay inside its folder, and its index is checked against the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpt.data.cache.latents import CachedLatents
from dpt.data.cache.storage import KEY, MANIFEST, CachePart, PartBuilder, index_file, shard_file
from dpt.errors import DataError, UserError
from dpt.files import sha256
from tests.fuzz.benchmarks import part


def write_index(folder: Path, **changes: Any) -> Path:
    """A cache with a changed index and a manifest with its checksum."""
    shard = shard_file(part(folder), 0)
    index, manifest = (json.loads(file.read_text()) for file in (index_file(shard), folder / MANIFEST))
    index_file(shard).write_text(json.dumps({**index, **changes}))
    manifest["shards"][shard.name]["index_sha256"] = sha256(index_file(shard))
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", ["../up.jpg", "/etc/hostname", "a\0.jpg", "..", ""])
def test_names_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    for number, changes in enumerate(({"names": ["a.jpg", "b.jpg", name]}, {"broken": {name: [3, "cut"]}})):
        folder = tmp_path / str(number)
        with pytest.raises(DataError, match="is not a file name under the data folder"):
            CachedLatents(CachePart.open(write_index(folder, **changes)), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facts": [[9, 8, 8, 1], [9, 8, 8], [9, 8, 8, 1]]}, "lacks the size of the image 'b.jpg'"),
        ({"facts": [[9, 8, 8, 1], [9, 8, -8, 1], [9, 8, 8, 1]]}, "lacks the size of the image 'b.jpg'"),
        ({"broken": {"x.jpg": [3]}}, "lacks the reason why 'x.jpg' is broken"),
        ({"broken": {"x.jpg": [3, 4]}}, "lacks the reason why 'x.jpg' is broken"),
        ({"checksums": [[1, 2], [1], [1, 2]]}, "lacks a checksum for one of its tensors"),
        ({"checksums": [[1, 2], "x", [1, 2]]}, "its checksums are not whole numbers"),
        ({"names": ["a.jpg"]}, "its lists differ in length"),
        ({"names": 5}, "its lists differ in length"),
        ({"names": ["a", 5, "c"]}, "its names are not strings"),
        ({"bytes": "x"}, "of its shard are missing"),
        ({"broken": []}, "of its shard are missing"),
        ({"facts": [1, 2, 3]}, "are not lists"),
        ({"more": 1}, "is not the index of a cache"),
    ],
)
def test_invalid_index_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        CachedLatents(CachePart.open(write_index(tmp_path, **changes)), tmp_path)


@pytest.mark.parametrize("name", ["../shard-00000.safetensors", "/etc/shard-00000.safetensors", "other.safetensors"])
def test_shards_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    manifest = json.loads((part(tmp_path) / MANIFEST).read_text())
    manifest["shards"][name] = manifest["shards"].pop("shard-00000.safetensors")
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="is not the name of a shard"):
        CachePart.open(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "5", "[]"])
def test_invalid_key_is_refused(tmp_path: Path, text: str) -> None:
    (part(tmp_path) / KEY).write_text(text)
    with pytest.raises(UserError, match=r"key\.json is not"), PartBuilder(tmp_path, {}, ["x"]).claimed():
        pass


def test_unfinished_index_without_metadata_is_rebuilt(tmp_path: Path) -> None:
    write_index(tmp_path, facts=[[], [], []])
    builder = PartBuilder(tmp_path, {"dtype": "float32", "resolution": 64}, ["latents", "mirrored"])
    with builder.claimed():
        (message,) = builder.resume(lambda name, facts: isinstance(facts[1], int))
    assert message == "shard-00000.safetensors is made again: its index lacks the metadata of its items"
