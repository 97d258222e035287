"""The folder of one training run: its configuration, its log, and its checkpoints, whose manifests are written last."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from dpt.errors import UserError, reason
from dpt.files import atomic_file, atomic_folder, exclusive_lock, sha256
from dpt.records import changes
from dpt.untrusted import parse_json, read_text
from dpt.weights import read_weights, save_tensors

MANIFEST, STATE = "manifest.json", "state.json"

STEP_FOLDER = re.compile(r"checkpoint-(\d+)")

SET_ASIDE = "set-aside-"


def save(root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write root/checkpoint-STEP, all or nothing: `state` as JSON, and one safetensors file per group of tensors."""
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
    """The tensors by group, and the state with its step checked."""
    problem = fault(folder)
    if problem:
        raise UserError(f"checkpoint {folder} cannot be used: {problem}")
    names = sorted(parse_json(read_text(folder / MANIFEST)))
    tensors = {Path(name).stem: read_weights(folder / name) for name in names if name.endswith(".safetensors")}
    return tensors, _state(folder / STATE)


def _state(file: Path) -> dict[str, Any]:
    try:
        state = parse_json(read_text(file))
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not (isinstance(state, dict) and type(state.get("step")) is int and state["step"] >= 0):
        raise UserError(f"{file} has no valid step")
    return state


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint of the training loop holds besides tensors."""

    step: int
    images: int
    config: Mapping[str, Any]
    """What decides the numbers of the run; see `run_folder.RunConfig`."""
    metrics: tuple[str, ...]
    """Names of the accumulated losses."""
    bad_in_a_row: int

    def plain(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "config": dict(self.config),
            "meters": list(self.metrics),
            "bad_in_a_row": self.bad_in_a_row,
        }

    @classmethod
    def parse(cls, state: Mapping[str, Any], folder: Path) -> TrainingState:
        file = folder / STATE
        if "config" not in state:
            raise UserError(f"{folder} is not a checkpoint of the training loop: it has no config")
        if not isinstance(state["config"], dict):
            raise UserError(f"{file}: config must be an object, not {state['config']!r}")
        for name in ("images", "bad_in_a_row"):
            if type(state.get(name)) is not int or state[name] < 0:
                raise UserError(f"{file}: {name} must be a whole number from 0 up, not {state.get(name)!r}")
        names = state.get("meters")
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise UserError(f"{file}: meters must be a list of names, not {names!r}")
        return cls(state["step"], state["images"], state["config"], tuple(names), state["bad_in_a_row"])


def newest_good(root: Path) -> Path | None:
    """The newest complete checkpoint; warns of newer ones that are damaged."""
    for folder in sorted(_step_folders(root), key=_step_of, reverse=True):
        problem = fault(folder)
        if problem is None:
            return folder
        print(f"warning: skipping {folder}: {problem}")
    return None


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        manifest = parse_json(read_text(folder / MANIFEST))
        unlisted = sorted({STATE, *(file.name for file in folder.glob("*.safetensors"))} - manifest.keys())
        if unlisted:
            return f"its {MANIFEST} does not list {unlisted[0]}"
        for name, entry in manifest.items():
            file = folder / name
            if Path(name).name != name:
                return f"its {MANIFEST} lists {name!r}, which is not a file name"
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"] or sha256(file) != entry["sha256"]:
                return f"{name} differs from what was saved (size or SHA-256)"
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not written completely"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    return None


def keep_newest(root: Path, limit: int) -> None:
    for folder in sorted(_step_folders(root), key=_step_of)[:-limit]:
        shutil.rmtree(folder, ignore_errors=True)


def set_aside(root: Path, after: int) -> list[Path]:
    """Rename the checkpoints of steps later than `after`, which a run that starts there will take again."""
    moved = []
    for folder in sorted(_step_folders(root), key=_step_of, reverse=True):
        if _step_of(folder) > after:
            names = (f"{SET_ASIDE}{folder.name}" + (f"-{n}" if n else "") for n in count())
            free = next(root / name for name in names if not (root / name).exists())
            moved.append(folder.rename(free))
    return moved


def _step_folders(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from (path for path in root.iterdir() if STEP_FOLDER.fullmatch(path.name) and path.is_dir())


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


CONFIG, LOG = "config.json", "log.jsonl"

LATEST, NONE = "latest", "none"

TEMPORARY = re.compile(r"\..*\.tmp|\.partial-.*")
"""Names of files that are being written; at the start of a run they are left over from a killed one."""


@dataclass(frozen=True)
class RunConfig:
    """What decides the numbers of a run, as plain JSON values: a run is resumed only with the same."""

    values: Mapping[str, Any]
    not_compared: frozenset[str] = frozenset()
    """Names that earlier versions recorded although they change no number."""
    newer: frozenset[str] = frozenset()
    """Names that earlier versions did not record: a record without one is compatible with any value."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Further text files to write into the folder, by name: records for people, which are not compared."""
    choose: str = "--output_dir or --run_name"
    """The flags that choose another folder."""

    def check_same(self, recorded: Mapping[str, Any], subject: str) -> None:
        if what := changes(recorded, self.values, self.not_compared | (self.newer - recorded.keys())):
            raise UserError(f"{subject} with another configuration ({what}); choose another {self.choose}")


@contextmanager
def claimed(root: Path, config: RunConfig) -> Iterator[None]:
    """Lock the folder for this run; refuse the folder of a run with another configuration."""
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        if (root / CONFIG).exists():
            config.check_same(_recorded(root / CONFIG), f"{root} is the folder of a run")
        elif _has_checkpoints(root):
            raise UserError(f"{root} has checkpoints but no {CONFIG}; choose another {config.choose}")
        else:
            _write(root / CONFIG, json.dumps(dict(config.values), indent=1) + "\n")
    with exclusive_lock(root / CONFIG, f"another process is training in {root}"):
        _remove_leftovers(root)
        with _writing(root):
            for name, text in config.files.items():
                _write(root / name, text)
        yield


def starting_point(root: Path, resume: str) -> Path | None:
    """The checkpoint to resume from. A named one is used or refused, never replaced by another."""
    if resume == LATEST:
        newest = newest_good(root)
        if newest is None and _has_checkpoints(root):
            raise UserError(f"none of the checkpoints in {root} can be used")
        return newest
    if resume.lower() == NONE:
        if _has_checkpoints(root):
            raise UserError(f"{root} has checkpoints already: resume from {LATEST}, or choose another --output_dir")
        return None
    named = root / resume if STEP_FOLDER.fullmatch(resume) else Path(resume).expanduser()
    if not named.is_dir():
        raise UserError(f"there is no checkpoint folder {named}")
    return named


def rewind(root: Path, step: int) -> None:
    """Remove checkpoints and log records of steps later than `step`, which will be taken again."""
    with _writing(root):
        for folder in set_aside(root, step):
            print(f"warning: this run starts after step {step}; a later checkpoint was renamed to {folder}")
        log = root / LOG
        if not log.exists():
            return
        kept = [line for line in log.read_text().splitlines() if _logged_step(line) <= step]
        _write(log, "".join(f"{line}\n" for line in kept))


def is_validated(root: Path, step: int) -> bool:
    """Whether the log has a validation of that step."""
    log = root / LOG
    lines = log.read_text().splitlines() if log.exists() else []
    return any(_logged_step(line) == step and "validation" in parse_json(line) for line in lines)


def append_log(root: Path, record: Mapping[str, Any]) -> None:
    with _writing(root), (root / LOG).open("a") as log:
        log.write(json.dumps(record) + "\n")


def flush_log(root: Path) -> None:
    """Sync the log to disk, so that after a power failure it is not older than the checkpoint."""
    with _writing(root), (root / LOG).open("a") as log:
        os.fsync(log.fileno())


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"the output folder {root} cannot be written to: {reason(error)}") from None


def _logged_step(line: str) -> float:
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return float("inf")  # a line that was cut when the run was killed


def _recorded(file: Path) -> Mapping[str, Any]:
    try:
        recorded = parse_json(read_text(file))
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(recorded, dict):
        raise UserError(f"{file} is not the configuration of a run")
    return recorded


def _has_checkpoints(root: Path) -> bool:
    return root.is_dir() and any(STEP_FOLDER.fullmatch(path.name) for path in root.iterdir())


def _remove_leftovers(root: Path) -> None:
    """Temporary files and folders of a killed run, in the folder and in those one below it."""
    for path in [*root.glob(".*"), *root.glob("*/.*")]:
        if TEMPORARY.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _write(file: Path, text: str) -> None:
    with atomic_file(file) as work:
        work.write_text(text)
