from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpt.data.cache.latents import NpyLatents
from dpt.data.files.reading import DataRoot
from dpt.data.files.source import matching_files, training_files
from dpt.errors import DataError
from tests.data.cache.conftest import FRAMING

SHAPE = (4, 16, 16)


@pytest.fixture
def published(root: DataRoot) -> NpyLatents:
    """coco/latents/train2014_SD2-1/<stem>.npy in float16, filled with the number of the image."""
    folder = root.path / "coco/latents/train2014_SD2-1"
    folder.mkdir(parents=True)
    for picture in root.images("train2014").iterdir():
        np.save(folder / f"{picture.stem}.npy", np.full(SHAPE, int(picture.stem[-3:]), np.float16))
    return NpyLatents(folder, SHAPE)


def test_published_latents_replace_images(published: NpyLatents, root: DataRoot) -> None:
    source = training_files(root, "refall", FRAMING, 0, published)
    plain = training_files(root, "refall", FRAMING, 0)
    for index in range(len(source)):
        example = source[index]
        assert example.expression == plain[index].expression
        for picture in example.pictures:
            assert picture.latent and picture.values.dtype == torch.float32
            assert picture.values.unique().tolist() == [int(Path(picture.name).stem[-3:])]


def test_images_of_another_split_are_decoded(published: NpyLatents, root: DataRoot) -> None:
    """Published latents are of train2014 only."""
    assert not matching_files(root, "val", FRAMING, 0, published)[0].image.latent


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((4, 8, 8), np.float16), "should hold latents of the shape (4, 16, 16), not float16 of (4, 8, 8)"),
        (np.zeros(SHAPE, np.int64), "not int64 of (4, 16, 16)"),
        (np.full(SHAPE, np.nan, np.float32), "holds numbers that are not finite"),
        (np.array([{}], dtype=object), "cannot be read: Array can't be memory-mapped: Python objects in dtype"),
        (b"", "cannot be read: "),
        (b"\x93NUMPY\x01\x00v", "cannot be read: "),
    ],
)
def test_invalid_file_is_named(published: NpyLatents, root: DataRoot, content: Any, message: str) -> None:
    file = sorted(published.folder.iterdir())[0]
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content, allow_pickle=True)
    with pytest.raises(DataError, match=f"^{re.escape(str(file))} {re.escape(message)}|{re.escape(message)}"):
        published.latents(root.images("train2014") / f"{file.stem}.jpg")


def test_missing_latents_are_refused(published: NpyLatents, root: DataRoot) -> None:
    with pytest.raises(DataError, match=r"other\.jpg has no latents: there is no file .*other\.npy"):
        published.latents(root.images("train2014") / "other.jpg")
    with pytest.raises(DataError, match="has no latents of mirrored images"):
        published.latents(sorted(root.images("train2014").iterdir())[0], mirrored=True)
