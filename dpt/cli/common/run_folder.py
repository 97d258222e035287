"""A fresh folder for one run's results, and the file of prompts it reads."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from dpt.errors import UserError, fail
from dpt.untrusted import parse_json


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


def read_prompts(file: Path) -> list[str]:
    """In the file's order; empty lines are no prompts."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        fail(f"the prompts {file} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        fail(f"the prompts {file} are not text in UTF-8")
    prompts = [
        _prompt_of(line, f"line {number} of {file}") if file.suffix == ".jsonl" else line.strip()
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return prompts or fail(f"there is no prompt in {file}")


def _prompt_of(line: str, where: str) -> str:
    try:
        found = parse_json(line)
    except ValueError:
        fail(f"{where} is not JSON")
    prompt = found.get("prompt") if isinstance(found, dict) else None
    if not (isinstance(prompt, str) and prompt.strip()):
        fail(f'{where} has no text under "prompt"')
    return prompt.strip()
