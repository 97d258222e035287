"""Two hosts on one machine: connected network namespaces. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

ADDRESSES = ("10.77.0.1", "10.77.0.2")


@dataclass(frozen=True)
class Hosts:
    names: tuple[str, str]
    interfaces: tuple[str, str]

    def on(self, host: int, command: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.names[host], *command]

    def cut(self) -> None:
        """Take the link down without closing connections."""
        _ip("-n", self.names[1], "link", "set", self.interfaces[1], "down")


def can_create_hosts() -> bool:
    return os.getuid() == 0 and shutil.which("ip") is not None


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    process_id = os.getpid()
    hosts = Hosts((f"dpt-{process_id}-a", f"dpt-{process_id}-b"), (f"a{process_id}", f"b{process_id}"))
    try:
        for name in hosts.names:
            _ip("netns", "add", name)
        first, second = hosts.interfaces
        here, there = ("netns", hosts.names[0]), ("netns", hosts.names[1])
        _ip("link", "add", first, *here, "type", "veth", "peer", "name", second, *there)
        for name, interface, address in zip(hosts.names, hosts.interfaces, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", interface)
            for device in ("lo", interface):
                _ip("-n", name, "link", "set", device, "up")
        yield hosts
    finally:
        for name in hosts.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
