"""The folder of one training run: its configuration, its checkpoints, its log. One run per folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpt.errors import UserError, reason
from dpt.files import atomic_file, exclusive_lock
from dpt.records import changes
from dpt.training.engine import checkpoint
from dpt.untrusted import parse_json, read_text

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
    """Remove checkpoints and log records of steps later than `step`, which will be taken again."""
    with _writing(root):
        for folder in checkpoint.set_aside(root, step):
            print(f"warning: this run starts after step {step}; a later checkpoint was renamed to {folder}")
        log = root / LOG
        if not log.exists():
            return
        kept = [line for line in log.read_text().splitlines() if _step_of(line) <= step]
        _write(log, "".join(f"{line}\n" for line in kept))


def is_validated(root: Path, step: int) -> bool:
    """Whether the log has a validation of that step."""
    log = root / LOG
    lines = log.read_text().splitlines() if log.exists() else []
    return any(_step_of(line) == step and "validation" in parse_json(line) for line in lines)


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


def _step_of(line: str) -> float:
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
    return root.is_dir() and any(checkpoint.STEP_FOLDER.fullmatch(path.name) for path in root.iterdir())


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
