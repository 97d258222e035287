"""Processes that share a list of work, as `accelerate launch` or `torchrun` start them; mostly there is just one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from dpt.errors import UserError

T = TypeVar("T")

PATIENCE = timedelta(hours=12)
"""One may be done with its share long before another."""


@dataclass(frozen=True)
class Processes:
    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        return list(items[self.rank :: self.count])

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What each process makes, in their order, on every one; where one fails, all fail alike."""
        made, fault = _tried(make)
        if self.count == 1:
            everyone = [(made, fault)]
        else:
            import torch.distributed as dist

            everyone: list[Any] = [None] * self.count  # type: ignore[no-redef]
            dist.all_gather_object(everyone, (made, fault))
        for _, one in everyone:
            if one is not None:
                raise UserError(one)
        return [one for one, _ in everyone]  # type: ignore[misc]

    def from_main(self, make: Callable[[], T]) -> T:
        """What the main process makes, on every one."""
        return self.gather(lambda: make() if self.is_main else None)[0]  # type: ignore[return-value]


@contextmanager
def processes() -> Iterator[Processes]:
    """Those of this run. They only tell each other names and numbers, so they talk by way of the CPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Processes()
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def own_gpu() -> str | None:
    """The number of the GPU that a launcher means this process to use."""
    return os.environ.get("LOCAL_RANK") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def take_own_gpu() -> None:
    """What opens a model without saying on which GPU then gets this process its own."""
    number = own_gpu()
    if number is None:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(number))


def _tried(make: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return make(), None
    except UserError as error:
        return None, str(error)
    except OSError as error:
        return None, f"the results cannot be written: {error.strerror or error}"
