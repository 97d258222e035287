"""Hashes of large files, computed once and remembered in the user's cache folder.

The folder is `$DPT_CACHE_DIR`, or `dpt` in `$XDG_CACHE_HOME` or `~/.cache`. A memo is used only while size and
modification time of every file are those it was made for; one that is missing or damaged costs only time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpt.errors import UserError
from dpt.files import atomic_file
from dpt.untrusted import parse_json

SETTLED = 2.0
"""Seconds since its last change after which a file's size and time tell its content."""


def remembered_hash(folder: Path, key: str, files: Sequence[Path], compute: Callable[[], str]) -> str:
    """A hash of these files of a folder, computed only if one changed in size or modification time since."""
    memo = _memo_file(folder)
    before = _stamps(files)
    known = _read_memo(memo)
    entry = known.get(key)
    if isinstance(entry, dict) and entry.get("files") == before and isinstance(entry.get("sha256"), str):
        return str(entry["sha256"])
    settled = all(time.time() - stamp[2] / 1e9 > SETTLED for stamp in before)
    digest = compute()
    if settled and _stamps(files) == before:
        _write_memo(memo, {**known, key: {"files": before, "sha256": digest}})
    return digest


def _stamps(files: Sequence[Path]) -> list[list[Any]]:
    stats = [(file, file.stat()) for file in files]
    return [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def _memo_file(folder: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpt"
    root = Path(os.environ.get("DPT_CACHE_DIR") or cache)
    where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    return root / "model-hashes" / f"{where[:32]}.json"


def _read_memo(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_memo(file: Path, content: Mapping[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as work:
            work.write_text(json.dumps(content), encoding="utf-8")
    except (OSError, UserError):
        return  # a memo that cannot be written only costs the time to hash again
