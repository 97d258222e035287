"""The folder of one training run: its configuration, its checkpoints, its log. One run per folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpt.errors import UserError
from dpt.files import atomic_file, exclusive_lock
from dpt.training.engine import checkpoint
from dpt.untrusted import parse_json

CONFIG, LOG = "config.json", "log.jsonl"

LATEST, NONE = "latest", "none"

Config = Mapping[str, Any]
"""Whatever decides what a run computes, as JSON would give it back."""


@contextmanager
def claimed(root: Path, config: Config) -> Iterator[None]:
    """Inside, the folder is this run's alone; refused if it is the folder of a run with another configuration."""
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        if (root / CONFIG).exists():
            check_same(_recorded(root / CONFIG), config, f"{root} is the folder of a run")
        elif _has_checkpoints(root):
            raise UserError(f"{root} has checkpoints but no {CONFIG}; choose another --output_dir or --run_name")
        else:
            _write(root / CONFIG, json.dumps(config, indent=1) + "\n")
    with exclusive_lock(root / CONFIG, f"another process is training in {root}"):
        for leftover in root.glob(".*.tmp"):
            _remove(leftover)
        yield


def check_same(recorded: Config, config: Config, whose: str) -> None:
    names = sorted(name for name in {*recorded, *config} if recorded.get(name) != config.get(name))
    if names:
        told = "; ".join(f"{name} was {recorded.get(name)!r} and is {config.get(name)!r}" for name in names)
        raise UserError(f"{whose} with another configuration ({told}); choose another --output_dir or --run_name")


def starting_point(root: Path, resume: str) -> Path | None:
    """The checkpoint to go on from. A path given is that one or an error, never another one in its place."""
    if resume == LATEST:
        newest = checkpoint.newest_good(root)
        if newest is None and _has_checkpoints(root):
            raise UserError(f"none of the checkpoints in {root} can be used")
        return newest
    if resume.lower() == NONE:
        if _has_checkpoints(root):
            raise UserError(f"{root} has checkpoints already: resume from {LATEST}, or choose another --output_dir")
        return None
    named = root / resume if checkpoint.STEP_FOLDER.fullmatch(resume) else Path(resume).expanduser()
    if not named.is_dir():
        raise UserError(f"there is no checkpoint folder {named}")
    return named


def rewind(root: Path, step: int) -> None:
    """Take back what is there of steps after `step`: they will be taken again."""
    with _writing(root):
        for folder in checkpoint.set_aside(root, step):
            print(f"warning: this run begins after step {step}, so a later checkpoint is now called {folder}")
        log = root / LOG
        if not log.exists():
            return
        kept = [line for line in log.read_text().splitlines() if _step_of(line) <= step]
        _write(log, "".join(f"{line}\n" for line in kept))


def note(root: Path, record: Mapping[str, Any]) -> None:
    with _writing(root), (root / LOG).open("a") as log:
        log.write(json.dumps(record) + "\n")


def settle(root: Path) -> None:
    """Put the log on the disk: what a checkpoint is past must be there if the power fails."""
    with _writing(root), (root / LOG).open("a") as log:
        os.fsync(log.fileno())


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"the output folder {root} cannot be written to: {error.strerror or error}") from None


def _step_of(line: str) -> float:
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return float("inf")  # the line that was being written when the process was killed


def _recorded(file: Path) -> Config:
    try:
        recorded = parse_json(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(recorded, dict):
        raise UserError(f"{file} is not the configuration of a run")
    return recorded


def _has_checkpoints(root: Path) -> bool:
    return root.is_dir() and any(checkpoint.STEP_FOLDER.fullmatch(path.name) for path in root.iterdir())


def _remove(leftover: Path) -> None:
    if leftover.is_dir():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink(missing_ok=True)


def _write(file: Path, text: str) -> None:
    with atomic_file(file) as work:
        work.write_text(text)
