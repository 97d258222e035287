"""Disks that are too small, or cannot be written to: mounted for a child process alone, and gone with it."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable
from pathlib import Path

from tests.training.children import in_a_child

NEW_NAMESPACE, NEW_USER = 0x00020000, 0x10000000
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 1 << 5, 1 << 12, 1 << 14, 1 << 18
"""As in <sched.h> and <sys/mount.h>."""


class CannotMount(Exception):
    """Neither root nor allowed to be root in a namespace of one's own."""


def own_mounts() -> None:
    """What this process mounts from now on nobody else sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if user == 0:
        _done(libc.unshare(NEW_NAMESPACE))
    else:
        _done(libc.unshare(NEW_USER | NEW_NAMESPACE))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _done(libc.mount(b"none", b"/", None, PRIVATE | RECURSIVE, None))


def mount_memory(folder: Path, kib: int, again: bool = False) -> None:
    """A disk of so many KiB in memory; `again` changes the size of one that is there."""
    flags, libc = REMOUNT if again else 0, ctypes.CDLL(None, use_errno=True)
    _done(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, f"size={kib}k".encode()))


def make_read_only(folder: Path) -> None:
    """What is there stays and can be read."""
    path, libc = os.fsencode(folder), ctypes.CDLL(None, use_errno=True)
    _done(libc.mount(path, path, None, BIND, None))
    _done(libc.mount(None, path, None, BIND | REMOUNT | READ_ONLY, None))


def _done(code: int) -> None:
    if code:
        raise CannotMount(os.strerror(ctypes.get_errno()))


def limit_files(size: int) -> None:
    """No file of this process may be of more bytes: the next best thing where nothing can be mounted."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def can_mount() -> bool:
    return run_in_a_child(own_mounts)[0] == 0


def run_in_a_child(work: Callable[[], object]) -> tuple[int, str]:
    """Its exit code, and all that it said."""
    ear, mouth = os.pipe()
    child = in_a_child(work, mouth)
    os.close(mouth)
    with os.fdopen(ear, errors="replace") as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
