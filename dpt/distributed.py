"""Collectives for the processes of a run, and work shared between processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from dpt.errors import UserError

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another: one may still be fetching the model."""


class LostProcessError(UserError):
    """Nothing that the user got wrong: the same command goes on (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


@contextmanager
def _listening(accelerator: Accelerator) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or "out of memory" in str(error):
            raise
        raise LostProcessError(
            f"process {accelerator.process_index} hears nothing more of another process of this run, so it ends too: "
            f"the same command goes on from the newest checkpoint ({str(error).splitlines()[0].split('. ')[0]})"
        ) from error


def sum_over(accelerator: Accelerator, own: Tensor) -> Tensor:
    with _listening(accelerator):
        return accelerator.reduce(own, reduction="sum")


def mean_over(accelerator: Accelerator, own: Tensor) -> Tensor:
    with _listening(accelerator):
        return accelerator.reduce(own, reduction="mean")


def barrier(accelerator: Accelerator) -> None:
    """Nobody goes on before everybody is here."""
    with _listening(accelerator):
        accelerator.wait_for_everyone()


def require_same_step(accelerator: Accelerator, step: int, root: Path) -> None:
    """All have found the same checkpoint."""
    with _listening(accelerator):
        steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if odd := [process for process, other in enumerate(steps) if other != steps[0]]:
        raise UserError(
            f"process 0 would go on after step {steps[0]} and process {odd[0]} after step {steps[odd[0]]}: "
            f"the machines of a run must share the file system of {root}"
        )


def any_process(accelerator: Accelerator, own: Tensor) -> Tensor:
    """True on every process if it is true on one. Stays on the device."""
    return sum_over(accelerator, own.float()) > 0


def any_true(accelerator: Accelerator, own: bool) -> bool:
    """The same for a value of the host, which waits for the answer."""
    if accelerator.num_processes == 1:
        return own
    return bool(any_process(accelerator, torch.tensor(float(own), device=accelerator.device)))


T = TypeVar("T")


JOIN_TIMEOUT = timedelta(hours=12)
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
        made, fault = _attempt(make)
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

    dist.init_process_group("gloo", timeout=JOIN_TIMEOUT)
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


def _attempt(make: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return make(), None
    except UserError as error:
        return None, str(error)
    except OSError as error:
        return None, f"the results cannot be written: {error.strerror or error}"
