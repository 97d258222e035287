"""A folder that is complete under its name or not there at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dpt.errors import UserError


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A temporary sibling to write into; when the block ends without an error it becomes `final`.

    `final` may be there already only if it is an empty folder.
    """
    final = Path(os.path.abspath(final))  # noqa: PTH100 - "." and ".." have no siblings; links stay as they are
    refuse_nonempty(final)
    made = _first_missing(final.parent)
    work = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        work.mkdir(parents=True)
        yield work
        refuse_nonempty(final)
        if final.exists():
            final.rmdir()
        work.rename(final)
    except OSError as error:
        raise UserError(f"the folder {final} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if made is not None and not final.exists():
            _remove_if_empty(final.parent, made)


@contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """A temporary sibling to write to; when the block ends without an error it is on the disk, and becomes `final`."""
    work = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        yield work
        _flush(work)
        work.replace(final)
        _flush(final.parent)
    finally:
        work.unlink(missing_ok=True)


@contextmanager
def atomic_new_file(final: Path) -> Iterator[Path]:
    """As `atomic_file`, but nothing may be there already; folders on the way to it are made."""
    final = Path(os.path.abspath(final))  # noqa: PTH100 - links stay as they are
    work = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    made = _first_missing(final.parent)
    try:
        refuse_existing(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        yield work
        _flush(work)
        _link_to_final(work, final)
        _flush(final.parent)
    except OSError as error:
        raise UserError(f"the file {final} cannot be written: {error.strerror or error}") from None
    finally:
        _remove_if_written(work)
        if made is not None and not final.exists():
            _remove_if_empty(final.parent, made)


def _link_to_final(work: Path, final: Path) -> None:
    """A link, unlike a renaming, never replaces what somebody else has put there meanwhile."""
    try:
        final.hardlink_to(work)
    except FileExistsError:
        refuse_existing(final)
        raise
    except OSError:  # a file system without links
        refuse_existing(final)
        work.rename(final)


def _remove_if_written(work: Path) -> None:
    with suppress(OSError):
        work.unlink(missing_ok=True)


def refuse_existing(final: Path) -> None:
    if os.path.lexists(final):
        raise UserError(f"{final} is there already; nothing was written")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_nonempty(final: Path) -> None:
    try:
        taken = final.is_symlink() or (final.exists() and (not final.is_dir() or any(final.iterdir())))
    except OSError as error:
        raise UserError(f"the folder {final} cannot be looked into: {error.strerror or error}") from None
    if taken:
        raise UserError(f"{final} is there already and is not an empty folder; nothing was written")


def _first_missing(folder: Path) -> Path | None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    return missing[-1] if missing else None


def _remove_if_empty(folder: Path, topmost: Path) -> None:
    """Take back the parents that were made for nothing."""
    for path in (folder, *folder.parents):
        try:
            path.rmdir()
        except OSError:
            return
        if path == topmost:
            return


def lock(file: IO[str], taken: str) -> None:
    """Until it is closed or the process ends, however it does; its workers do not inherit this kind of lock. `taken` is
    said where another process holds it."""
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(taken) from None
    except OSError:
        pass  # file systems that know no locks are trusted to have one writer
