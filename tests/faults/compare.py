"""Compare the folder of a run byte for byte with that of an uninterrupted run that saved at every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpt.training.engine import run_folder
from dpt.training.engine.logging import CLOCK_NAMES


def log(root: Path) -> list[dict[str, Any]]:
    """The log without times and without a truncated last line."""
    file = root / "log.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in record.items() if name not in CLOCK_NAMES} for record in records]


def accepted(root: Path) -> list[Path]:
    """The checkpoints that could be resumed from."""
    return [folder for folder in sorted(root.glob("checkpoint-*")) if run_folder.fault(folder) is None]


def reached(root: Path) -> int:
    """The step that would be resumed from."""
    return max((int(folder.name.removeprefix("checkpoint-")) for folder in accepted(root)), default=0)


def differences(root: Path, reference: Path) -> list[str]:
    """Differences of valid checkpoints, and of the log up to the newest of them, from the reference."""
    good, step = accepted(root), reached(root)
    different = [
        f"{folder.name}/{name}" for folder in good for name in differing_files(folder, reference / folder.name)
    ]
    lines = [[line for line in log(folder) if line["step"] <= step] for folder in (root, reference)]
    return different if lines[0] == lines[1] else [*different, f"the log up to step {step}"]


def differences_at_the_end(root: Path, reference: Path, steps: int, kept: int) -> list[str]:
    """Differences of a finished run: the whole log, the last checkpoint, and leftover files."""
    different = differences(root, reference)
    if log(root) != log(reference):
        different.append("the log")
    if not (root / f"checkpoint-{steps}").exists():
        different.append("the last checkpoint is missing")
    if len(accepted(root)) != kept or len(list(root.glob("checkpoint-*"))) != kept:
        different.append("not as many checkpoints as were to be kept")
    return [*different, *(f"{path.name} is left over" for path in root.glob(".*"))]


def differing_files(folder: Path, reference: Path) -> list[str]:
    """Files that differ between two checkpoints: weights, moments, average, meters and state.json."""
    names = sorted({path.name for checkpoint_folder in (folder, reference) for path in checkpoint_folder.iterdir()})
    return [name for name in names if _bytes(folder / name) != _bytes(reference / name)]


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None
