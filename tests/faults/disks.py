"""Disks that are small or read-only, mounted for a child process only."""

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
    """Neither root nor allowed to create a user namespace."""


def own_mounts() -> None:
    """Give this process mounts that no other process sees."""
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
    """Mount a memory disk of this many KiB; `again` resizes a mounted one."""
    flags, libc = REMOUNT if again else 0, ctypes.CDLL(None, use_errno=True)
    _done(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, f"size={kib}k".encode()))


def make_read_only(folder: Path) -> None:
    path, libc = os.fsencode(folder), ctypes.CDLL(None, use_errno=True)
    _done(libc.mount(path, path, None, BIND, None))
    _done(libc.mount(None, path, None, BIND | REMOUNT | READ_ONLY, None))


def _done(code: int) -> None:
    if code:
        raise CannotMount(os.strerror(ctypes.get_errno()))


def limit_files(size: int) -> None:
    """Limit the size of any file this process writes, for machines where nothing can be mounted."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def can_mount() -> bool:
    return run_in_a_child(own_mounts)[0] == 0


def run_in_a_child(work: Callable[[], object]) -> tuple[int, str]:
    """Its exit code, and all its output."""
    reader, writer = os.pipe()
    child = in_a_child(work, writer)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as output:
        text = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
