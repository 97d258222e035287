"""A checkpoint is a folder whose manifest is written last: a partial one is never picked up."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from dpt.errors import UserError
from dpt.files import atomic_folder, sha256
from dpt.untrusted import parse_json
from dpt.weights import read_weights, save_tensors

MANIFEST, STATE = "manifest.json", "state.json"

STEP_FOLDER = re.compile(r"checkpoint-(\d+)")

SET_ASIDE = "set-aside-"


def save(root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write `tensors` (one safetensors file per group) and `state` as root/checkpoint-STEP, all or nothing."""
    final = root / f"checkpoint-{step}"
    advice = "; earlier checkpoints are unchanged, and the same command resumes from the newest"
    with atomic_folder(final, replace=True, advice=advice) as work:
        for group, content in tensors.items():
            save_tensors(
                {key: value.detach().contiguous() for key, value in content.items()}, work / f"{group}.safetensors"
            )
        (work / STATE).write_text(json.dumps({"step": step, **state}, indent=1))
        files = sorted(work.iterdir())
        manifest = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return final


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    problem = fault(folder)
    if problem:
        raise UserError(f"checkpoint {folder} cannot be used: {problem}")
    names = sorted(parse_json((folder / MANIFEST).read_text()))
    tensors = {Path(name).stem: read_weights(folder / name) for name in names if name.endswith(".safetensors")}
    return tensors, _state(folder / STATE)


def _state(file: Path) -> dict[str, Any]:
    try:
        state = parse_json(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not (isinstance(state, dict) and isinstance(state.get("step"), int)):
        raise UserError(f"{file} does not say after which step it was saved")
    return state


def newest_good(root: Path) -> Path | None:
    """The newest complete checkpoint; says aloud which newer ones it had to pass over."""
    for folder in sorted(_step_folders(root), key=_step_of, reverse=True):
        problem = fault(folder)
        if problem is None:
            return folder
        print(f"warning: passing over {folder}: {problem}")
    return None


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        manifest = parse_json((folder / MANIFEST).read_text())
        unlisted = sorted({STATE, *(file.name for file in folder.glob("*.safetensors"))} - manifest.keys())
        if unlisted:
            return f"its {MANIFEST} says nothing of {unlisted[0]}"
        for name, facts in manifest.items():
            file = folder / name
            if Path(name).name != name:
                return f"its {MANIFEST} names {name!r}, which is no file in it"
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != facts["bytes"] or sha256(file) != facts["sha256"]:
                return f"{name} is not what was saved (size or SHA-256 differs)"
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was never finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    return None


def keep_newest(root: Path, limit: int) -> None:
    for folder in sorted(_step_folders(root), key=_step_of)[:-limit]:
        shutil.rmtree(folder, ignore_errors=True)


def set_aside(root: Path, after: int) -> list[Path]:
    """Those of steps that a run which begins after step `after` will take again are not of that run: rename them."""
    moved = []
    for folder in sorted(_step_folders(root), key=_step_of, reverse=True):
        if _step_of(folder) > after:
            names = (f"{SET_ASIDE}{folder.name}" + (f"-{nth}" if nth else "") for nth in count())
            free = next(root / name for name in names if not (root / name).exists())
            moved.append(folder.rename(free))
    return moved


def _step_folders(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from (path for path in root.iterdir() if STEP_FOLDER.fullmatch(path.name) and path.is_dir())


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))
