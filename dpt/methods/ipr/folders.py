"""The output folder of a stage, which appears under its name only when complete.

Until then the stage writes to a hidden folder beside it, and an interrupted stage continues there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpt.errors import UserError, reason
from dpt.files import atomic_file, flush, sha256
from dpt.records import changes
from dpt.untrusted import parse_json, read_json_object

RECORD = "stage.json"

INPUTS = "inputs.json"
"""The file of an unfinished folder that holds the inputs of its stage."""


@dataclass(frozen=True)
class StageFolder:
    """The output folder of a stage, and the inputs that determine its content, as plain JSON values."""

    path: Path
    inputs: Mapping[str, Any]

    @property
    def work(self) -> Path:
        return self.path.with_name(f".{self.path.name}.unfinished")

    def is_complete(self) -> bool:
        """Whether the stage was finished with these inputs; a UserError if it was finished with others."""
        if not (self.path / RECORD).is_file():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise UserError(f"{self.path} is there already and was not written by this stage: choose another --out")
            return False
        recorded = self.record().get("inputs")
        recorded = recorded if isinstance(recorded, dict) else {}
        if what := changes(recorded, self.inputs):
            raise UserError(f"{self.path} was made from something else ({what}): delete it, or choose another --out")
        return True

    def begin(self) -> Path:
        """The folder to write into; files of an interrupted attempt with the same inputs are still in it."""
        try:
            if self.work.exists() and not self._continues():
                shutil.rmtree(self.work)
            self.work.mkdir(parents=True, exist_ok=True)
            write_json(self.work / INPUTS, dict(self.inputs))
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {reason(error)}") from None
        return self.work

    def _continues(self) -> bool:
        try:
            return read_json_object(self.work / INPUTS) == parse_json(json.dumps(dict(self.inputs)))
        except UserError:
            return False

    def finish(self, **counts: Any) -> None:
        """Write the record, fsync all files and rename the work folder to `path`."""
        write_json(self.work / RECORD, {"inputs": dict(self.inputs), **counts})
        (self.work / INPUTS).unlink()
        for path in [*sorted(self.work.rglob("*")), self.work]:
            flush(path)
        with suppress(OSError):
            self.path.rmdir()  # empty, or else is_complete had refused it
        self.work.rename(self.path)
        flush(self.path.parent)

    def record(self) -> dict[str, Any]:
        return read_json_object(self.path / RECORD)


def digest_of(folder: Path, stage: str) -> str:
    """A hash of the record (inputs and counts) of a finished folder, which later stages store among their inputs."""
    read_stage(folder, stage)
    return sha256(folder / RECORD)[:16]


def text_digest(content: Any) -> str:
    """A hash of plain JSON values."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def read_stage(folder: Path, stage: str) -> dict[str, Any]:
    """The record of a finished stage of this name."""
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder} is not a finished folder of `dpt ipr {stage}`: it has no {RECORD}")
    record = read_json_object(folder / RECORD)
    if record.get("stage") != stage:
        raise UserError(f"{folder} is a folder of `dpt ipr {record.get('stage')}`, not of `dpt ipr {stage}`")
    return record


def write_json(file: Path, content: Any) -> None:
    replace_file(file, (json.dumps(content, indent=1) + "\n").encode())


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    replace_file(file, "".join(json.dumps(row) + "\n" for row in rows).encode())


def replace_file(file: Path, content: bytes) -> None:
    """Write the file atomically: a reader sees the old or the new content."""
    with atomic_file(file) as work:
        work.write_bytes(content)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link the file where the file system allows it, else copy it."""
    target.unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        work = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(source, work)
        work.replace(target)
