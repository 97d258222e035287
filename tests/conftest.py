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
    "sampling/test_diffusers_pipeline.py",
    "backbone/test_speedups.py",
    "backbone/test_sdxl.py",
    "methods/test_sld_pipelines.py",
    "methods/test_sld_readings.py",
    "benchmarks",
    "gpu",
    "backbone/test_features.py",
    "backbone/test_identity.py",
    "backbone/test_memory_saving_layers.py",
    "evaluation/bench",
    "evaluation/test_fidelity.py",
    "detect",
    "lora",
    "methods/ipr",
    "methods/test_sld_closed_loop.py",
    "methods/test_sld_families.py",
    "training/test_published_schedule.py",
    "test_docs.py",
    "test_recipes.py",
    "test_generation_defaults.py",
)
"""Folders and files of tests that start processes or train: `make check` leaves them to `make test`."""


def pytest_configure(config: pytest.Config) -> None:
    """A selection of tests has a quarter of hypothesis' examples; the nightly run, which selects none, has all."""
    if config.option.markexpr:
        from hypothesis import settings

        settings.register_profile("quick", max_examples=25)
        settings.load_profile("quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(root).as_posix()
        if any(place == slow or place.startswith(f"{slow}/") for slow in SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def repeated_work_is_remembered(request: pytest.FixtureRequest) -> None:
    """Parts of a short run take longer than its steps: opening the model, its curve, the estimate of its memory.

    As with hypothesis' examples, the nightly run does all of it every time.
    """
    if not request.config.option.markexpr:
        return
    folders = {item.path.parent.name for item in request.session.items}
    if "dpt.backbone.loading" in sys.modules:
        _load_once()
    if folders & {"cli", "data", "faults"}:
        _draw_once()
    if folders & {"cli", "data", "faults", "training", "ipr"}:
        _estimate_once()


def _load_once() -> None:
    """A model is copied from one with the same files, or copies of them, in a tenth of the time."""
    from dpt.backbone import loading

    load, loaded = loading._load, dict[object, Any]()

    def _load(kind: Any, folder: Any, component: Any, dtype: Any) -> Any:
        path = folder.component(component)
        files = [(file.name, file.stat()) for file in sorted(path.glob("*"))]
        key = (kind, dtype, *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files))
        if key not in loaded:
            loaded[key] = load(kind, folder, component, dtype)
        model = copy.deepcopy(loaded[key])
        if hasattr(model, "register_to_config"):
            model.register_to_config(_name_or_path=str(path))
        else:
            model.config._name_or_path = model.name_or_path = str(path)
        return model

    loading._load = _load


def _draw_once() -> None:
    """In tests of commands the first figure of a size stands for those that follow."""
    from matplotlib.figure import Figure

    draw, drawn = Figure.savefig, dict[object, bytes]()

    def save(figure: Figure, file: Path, dpi: int) -> None:
        size = (*figure.get_size_inches(), dpi)
        if size not in drawn or not re.match("tests/(cli|data|faults)/", os.environ["PYTEST_CURRENT_TEST"]):
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
