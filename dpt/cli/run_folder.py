"""A fresh folder for the results of one run: complete under its name, or not there at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from dpt.errors import UserError


class RunFolder:
    """Write into `work`; when the block ends without an error, everything is found under `final`."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.final: Path | None = None


@contextmanager
def new_run_folder(parent: Path, text: str) -> Iterator[RunFolder]:
    """A folder under `parent` named after `text` and the first free number, safe against other runs."""
    made = _first_missing(parent)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(Path(tempfile.mkdtemp(prefix=".partial-", dir=parent)))
    except OSError as error:
        _remove_if_empty(parent, made)
        raise UserError(f"the output folder {parent} cannot be written to: {error.strerror}") from None
    try:
        yield folder
        # The temporary folder was made for the owner's eyes only.
        folder.work.chmod(0o777 & ~_umask())
        folder.final = _rename_to_free_name(folder.work, parent, slug(text))
    except OSError as error:
        raise UserError(f"the results cannot be written to {parent}: {error.strerror or error}") from None
    finally:
        if folder.final is None:
            shutil.rmtree(folder.work, ignore_errors=True)
            _remove_if_empty(parent, made)


def slug(text: str, length: int = 48) -> str:
    """A readable file name made of the words of a text."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:length].strip("-") or "run"


def _rename_to_free_name(work: Path, parent: Path, stem: str) -> Path:
    for number in count(1):
        final = parent / f"{stem}-{number:03d}"
        if final.exists() or final.is_symlink():
            continue
        try:
            # Renaming onto a folder that has something in it fails, so two runs cannot take one name.
            work.rename(final)
        except OSError:
            if not final.exists():
                raise
            continue
        return final
    raise AssertionError("unreachable")


def _first_missing(path: Path) -> Path | None:
    """The outermost folder that making `path` will create."""
    missing = None
    for folder in (path, *path.parents):
        if folder.exists():
            break
        missing = folder
    return missing


def _remove_if_empty(path: Path, outermost: Path | None) -> None:
    """Take back the folders that were made for this run, as far as they are empty."""
    if outermost is None:
        return
    for folder in (path, *path.parents):
        try:
            folder.rmdir()
        except OSError:
            return
        if folder == outermost:
            return


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
