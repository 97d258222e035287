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
