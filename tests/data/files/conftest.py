from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dpt.data.files.reading import DataRoot
from dpt.data.scenes.export import Plan, export_scenes

SAMPLE = Path(__file__).parents[3] / "data/sample"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    """Shared by all tests: read only."""
    out = tmp_path_factory.mktemp("export") / "dataset"
    export_scenes(Plan(num=12, val=6, seed=9, world="full"), out)
    return DataRoot(out)


@pytest.fixture
def sample(tmp_path: Path) -> DataRoot:
    """A copy that a test may change."""
    shutil.copytree(SAMPLE, tmp_path / "data")
    return DataRoot(tmp_path / "data")
