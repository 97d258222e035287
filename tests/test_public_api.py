"""The public API: its names, where it is documented, and that importing it is cheap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dpt

ROOT = Path(__file__).parent.parent

NAMES = [
    "Adapter",
    "Backbone",
    "Condition",
    "Correction",
    "DPTPipeline",
    "Lora",
    "LoraConfig",
    "Request",
    "SamplingSettings",
    "Scorer",
    "TrainSettings",
    "UserError",
    "draw",
    "open_backbone",
    "open_checkpoint",
    "open_detector",
    "parse_methods",
    "run_task",
]
"""Frozen: a name is removed or renamed only with a new major version; a new one is documented in docs/python-api.md."""


def test_the_public_names_are_these_and_documented() -> None:
    assert sorted(dpt.__all__) == sorted(["__version__", *NAMES]) and set(NAMES) <= set(dir(dpt))
    documented = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert getattr(dpt, name).__name__ == name
        assert f"`{name}" in documented, f"{name} is not in docs/python-api.md"
    with pytest.raises(AttributeError, match="has no attribute 'DPTPipelin'"):
        _ = dpt.DPTPipelin


def test_importing_dpt_loads_no_library() -> None:
    heavy = "import sys, dpt; sys.exit(bool({'torch', 'diffusers', 'numpy', 'dpt.sampling'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, check=False).returncode == 0


def test_commands_about_data_do_not_load_diffusers() -> None:
    rooms = "dpt.data.files.check, dpt.cli.commands.data, dpt.data.from_folder, dpt.cli.commands.from_folder"
    code = f"import sys, {rooms}; sys.exit(bool({{'diffusers', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
