from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dpt.backbone import Backbone, open_backbone
from dpt.data.cache.contents import cache_contents
from dpt.data.cache.latents import CachedLatents, LatentsMaker
from dpt.data.cache.make import make
from dpt.data.cache.texts import CachedTexts, TextsMaker
from dpt.data.files.reading import DataRoot
from dpt.data.images import Framing
from dpt.data.scenes.export import Plan, export_scenes
from tests.training import tiny_stage1

FRAMING = Framing(64)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def backbone(model: Path) -> Backbone:
    return open_backbone(model, device="cpu")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    """Shared by all tests: read only."""
    out = tmp_path_factory.mktemp("export") / "dataset"
    export_scenes(Plan(num=6, val=3, seed=9, world="full"), out)
    return DataRoot(out)


@pytest.fixture
def root(exported: DataRoot, tmp_path: Path) -> DataRoot:
    """A copy that a test may change."""
    shutil.copytree(exported.path, tmp_path / "data")
    return DataRoot(tmp_path / "data")


def make_latents(backbone: Backbone, root: DataRoot, framing: Framing = FRAMING, **options: Any) -> CachedLatents:
    names = cache_contents(root, texts=False, random_flip=False).pictures
    maker = LatentsMaker(backbone, root.images(""), framing, names, root.path / "cache", **options)
    (part,) = make([maker], discard)
    return CachedLatents(part, root.images(""))


def make_texts(backbone: Backbone, root: DataRoot, random_flip: bool = False, **options: Any) -> CachedTexts:
    texts = cache_contents(root, texts=True, random_flip=random_flip).texts
    (part,) = make([TextsMaker(backbone, texts, root.path / "cache", **options)], discard)
    return CachedTexts(part)


def discard(sentence: str) -> None:
    assert sentence


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
