"""The processes of one run: collectives, shared work, and how they are started."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dpt.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a training process waits for another: one may still be fetching the model."""

JOIN_TIMEOUT = timedelta(hours=12)
"""The same where one process may finish its part of the work long before another."""

T = TypeVar("T")

R = TypeVar("R")


class LostProcessError(UserError):
    """Not the user's mistake: the same command continues the run (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. By default there is one, on the CPU, and collectives are free."""

    rank: int = 0
    count: int = 1
    device: torch.device | str = "cpu"
    """Where the tensors of collectives live."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of the work."""
        return list(items[self.rank :: self.count])

    def sum(self, own: Tensor) -> Tensor:
        total = own.clone()
        if self.count > 1:
            import torch.distributed as dist

            with self._report_lost_process():
                dist.all_reduce(total)
        return total

    def mean(self, own: Tensor) -> Tensor:
        return self.sum(own).div_(self.count) if self.count > 1 else own.clone()

    def any_tensor(self, own: Tensor) -> Tensor:
        """True on every process if it is true on one. Stays on the device."""
        return self.sum(own.float()) > 0

    def any(self, own: bool) -> bool:
        """The same for a value of the host, which waits for the answer."""
        if self.count == 1:
            return own
        import torch

        return bool(self.any_tensor(torch.tensor(float(own), device=self.device)))

    def barrier(self) -> None:
        if self.count > 1:
            import torch.distributed as dist

            with self._report_lost_process():
                dist.barrier()

    def require_same_step(self, step: int, root: Path) -> None:
        """All processes resume from the same checkpoint."""
        if self.count == 1:
            return
        import torch

        own = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        own[self.rank] = step
        steps = self.sum(own).tolist()
        if odd := [rank for rank, other in enumerate(steps) if other != steps[0]]:
            raise UserError(
                f"process 0 would continue after step {steps[0]} and process {odd[0]} after step {steps[odd[0]]}: "
                f"the machines of a run must share the file system of {root}"
            )

    def gather(self, make: Callable[[], T]) -> list[T]:
        """The result of `make` on each process, in order of rank, on every process; where one fails, all fail alike."""
        result, error = _attempt(make)
        if self.count == 1:
            everyone = [(result, error)]
        else:
            import torch.distributed as dist

            everyone: list[Any] = [None] * self.count  # type: ignore[no-redef]
            dist.all_gather_object(everyone, (result, error))
        for _, failure in everyone:
            if failure is not None:
                raise UserError(failure)
        return [gathered for gathered, _ in everyone]  # type: ignore[misc]

    def map(self, items: Sequence[T], work: Callable[[list[T]], list[R]]) -> list[R]:
        """The results of `work`, one per item, in the order of the items. Each process works on its part."""
        parts = self.gather(lambda: work(self.share(items)))
        return [parts[number % self.count][number // self.count] for number in range(len(items))]

    def from_main(self, make: Callable[[], T]) -> T:
        """The main process's result of `make`, on every process."""
        return self.gather(lambda: make() if self.is_main else None)[0]  # type: ignore[return-value]

    @contextmanager
    def _report_lost_process(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if "out of memory" in str(error):
                raise
            raise LostProcessError(
                f"process {self.rank} lost contact with another process of this run and ends too: run the same "
                f"command again to continue from the newest checkpoint ({str(error).splitlines()[0].split('. ')[0]})"
            ) from error


ONE_PROCESS = Processes()


@contextmanager
def processes(cuda: bool = False) -> Iterator[Processes]:
    """The processes that a launcher started. They exchange names and numbers only, over the CPU.

    `cuda`: also tensors on GPUs, where there are any.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Processes()
        return
    import torch.distributed as dist

    backend = "gloo"
    if cuda:
        import torch

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else backend
    dist.init_process_group(backend, timeout=JOIN_TIMEOUT)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def launch(count: int, work: Callable[[Processes], None]) -> None:
    """Run `work` in `count` processes on this machine's CPU, and wait for them."""
    if count == 1:
        work(Processes())
        return
    import torch.multiprocessing as mp

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_enter, args=(count, port, work), nprocs=count)


def _enter(rank: int, count: int, port: int, work: Callable[[Processes], None]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(count))
    with processes() as own:
        work(own)


def _end_with_parent() -> None:
    """End this process with its parent, even if a signal ends the parent."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def own_gpu() -> str | None:
    """The number of the GPU that a launcher assigned to this process."""
    return os.environ.get("LOCAL_RANK") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def take_own_gpu() -> None:
    """Make that GPU the default one of this process."""
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
