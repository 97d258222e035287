"""Settings of every test: one thread, no network, tiny models on disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # also where more is set: many tests fork, and threads do not survive a fork
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("DPT_CACHE_DIR", tempfile.mkdtemp(prefix="dpt-cache-"))

import pytest
from tqdm import tqdm

tqdm.monitor_interval = 0  # its thread may hold a lock when a test forks, and the child would wait for it forever

SLOW = (
    "cli",
    "faults",
    "fuzz",
    "pocket",
    "tools",
    "data/cache",
    "checkpoints",
    "training/test_resume.py",
    "training/test_stage1.py",
    "training/test_stage2.py",
    "training/test_memory.py",
    "sampling/test_pipeline.py",
    "sampling/test_self_correction.py",
    "sampling/test_published_sampling.py",
    "backbone/test_speedups.py",
    "benchmarks",
    "gpu",
    "backbone/test_features.py",
    "backbone/test_identity.py",
    "evaluation/bench",
    "evaluation/test_fidelity.py",
    "detect",
    "lora",
    "methods/ipr",
    "training/test_published_schedule.py",
    "test_docs.py",
    "test_recipes.py",
    "test_generation_defaults.py",
)
"""Folders and files of tests that start processes or train: `make check` leaves them to `make test`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(root).as_posix()
        if any(place == slow or place.startswith(f"{slow}/") for slow in SLOW):
            item.add_marker(pytest.mark.slow)


DRAWN: dict[object, bytes] = {}
"""Figures that commands saved, by their size."""


@pytest.fixture(autouse=True)
def figures_of_commands_are_drawn_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of a short training is its curve: the first figure of a size stands for those that follow."""
    if request.path.parent.name not in ("cli", "faults"):
        return
    from matplotlib.figure import Figure

    draw = Figure.savefig

    def save(figure: Figure, file: Path, dpi: int) -> None:
        size = (*figure.get_size_inches(), dpi)
        if size not in DRAWN:
            draw(figure, file, dpi=dpi)
            DRAWN[size] = file.read_bytes()
        file.write_bytes(DRAWN[size])

    monkeypatch.setattr(Figure, "savefig", save)
