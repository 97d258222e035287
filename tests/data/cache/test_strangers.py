"""A cache that somebody else made: its names stay inside, and what it says is held against what is there."""

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


def changed(folder: Path, **changes: Any) -> Path:
    """An index with a manifest that agrees to it."""
    shard = shard_file(part(folder), 0)
    index, manifest = (json.loads(file.read_text()) for file in (index_file(shard), folder / MANIFEST))
    index_file(shard).write_text(json.dumps({**index, **changes}))
    manifest["shards"][shard.name]["index_sha256"] = sha256(index_file(shard))
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", ["../up.jpg", "/etc/hostname", "a\0.jpg", "..", ""])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    for number, changes in enumerate(({"names": ["a.jpg", "b.jpg", name]}, {"broken": {name: [3, "cut"]}})):
        folder = tmp_path / str(number)
        with pytest.raises(DataError, match="is not a file name under the data folder"):
            CachedLatents(CachePart.open(changed(folder, **changes)), folder)


@pytest.mark.parametrize(
    ("changes", "says"),
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
def test_an_index_that_says_something_else(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        CachedLatents(CachePart.open(changed(tmp_path, **changes)), tmp_path)


@pytest.mark.parametrize("name", ["../shard-00000.safetensors", "/etc/shard-00000.safetensors", "other.safetensors"])
def test_shards_lie_in_the_folder(tmp_path: Path, name: str) -> None:
    manifest = json.loads((part(tmp_path) / MANIFEST).read_text())
    manifest["shards"][name] = manifest["shards"].pop("shard-00000.safetensors")
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="is not the name of a shard"):
        CachePart.open(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "5", "[]"])
def test_a_key_that_is_none(tmp_path: Path, text: str) -> None:
    (part(tmp_path) / KEY).write_text(text)
    with pytest.raises(UserError, match=r"key\.json is not"), PartBuilder(tmp_path, {}, ["x"]).claimed():
        pass


def test_an_unfinished_index_that_knows_nothing_of_its_pictures_is_made_again(tmp_path: Path) -> None:
    changed(tmp_path, facts=[[], [], []])
    builder = PartBuilder(tmp_path, {"dtype": "float32", "resolution": 64}, ["latents", "mirrored"])
    with builder.claimed():
        (told,) = builder.resume(lambda name, facts: isinstance(facts[1], int))
    assert told == "shard-00000.safetensors is made again: its index lacks the metadata of its items"
