"""Settings of every test: one thread, no network, tiny models on disk."""

from __future__ import annotations

import copy
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session", autouse=True)
def repeated_work_is_remembered(request: pytest.FixtureRequest) -> None:
    """Parts of a short run take longer than its steps: opening the model, its curve, the estimate of its memory."""
    folders = {item.path.parent.name for item in request.session.items}
    if "dpt.backbone.loading" in sys.modules:
        _load_once()
    if folders & {"cli", "faults"}:
        _draw_once()
    if folders & {"cli", "faults", "training", "ipr"}:
        _estimate_once()


def _load_once() -> None:
    """A model whose files are as they were is copied, which takes a tenth of the time."""
    from dpt.backbone import loading

    load, loaded = loading._load, dict[object, Any]()

    def _load(kind: Any, folder: Any, component: Any, dtype: Any) -> Any:
        files = [(str(file), file.stat()) for file in sorted(folder.component(component).glob("*"))]
        key = (kind, dtype, *((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in files))
        if key not in loaded:
            loaded[key] = load(kind, folder, component, dtype)
        return copy.deepcopy(loaded[key])

    loading._load = _load


def _draw_once() -> None:
    """In tests of commands the first figure of a size stands for those that follow."""
    from matplotlib.figure import Figure

    draw, drawn = Figure.savefig, dict[object, bytes]()

    def save(figure: Figure, file: Path, dpi: int) -> None:
        size = (*figure.get_size_inches(), dpi)
        if size not in drawn or not re.match("tests/(cli|faults)/", os.environ["PYTEST_CURRENT_TEST"]):
            draw(figure, file, dpi=dpi)
            drawn[size] = file.read_bytes()
        file.write_bytes(drawn[size])

    Figure.savefig = save  # type: ignore[method-assign, assignment]


def _estimate_once() -> None:
    """The activations of a UNet depend on its configuration, not on its weights."""
    from dpt.backbone.unet import UNetBackbone

    count, counted = UNetBackbone.activation_bytes, dict[object, int]()

    def activation_bytes(backbone: UNetBackbone, *what: object) -> int:
        config = {name: value for name, value in backbone.unet.config.items() if not name.startswith("_")}
        key = (repr(config), backbone.dtype, backbone.default_latent_size, backbone.prompt_length, *what)
        if key not in counted:
            counted[key] = count(backbone, *what)  # type: ignore[arg-type]
        return counted[key]

    UNetBackbone.activation_bytes = activation_bytes  # type: ignore[method-assign, assignment]
