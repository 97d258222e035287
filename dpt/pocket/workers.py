"""Processes that share the rows of each batch. Row r of step s is the same whoever computes it."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dpt.errors import UserError

PATIENCE = datetime.timedelta(hours=12)  # one worker may train a whole stage while the others wait


@dataclass(frozen=True)
class Workers:
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def rows(self, batch: int) -> range:
        if batch % self.count:
            raise UserError(f"a batch of {batch} cannot be shared evenly by {self.count} processes")
        share = batch // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()

    def average(self, gradients: list[Tensor], leave: bool) -> bool:
        """Average gradients over the workers, in place; whether any worker wants to leave the loop."""
        if self.count == 1:
            return leave
        flat = torch.cat([*(g.flatten() for g in gradients), gradients[0].new_tensor([float(leave)])])
        dist.all_reduce(flat)
        flat /= self.count
        start = 0
        for g in gradients:
            g.copy_(flat[start : start + g.numel()].view_as(g))
            start += g.numel()
        return bool(flat[-1] > 0)


def launch(count: int, work: Callable[[Workers], None]) -> None:
    if count == 1:
        work(Workers())
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_enter, args=(count, port, work), nprocs=count)


def _enter(rank: int, count: int, port: int, work: Callable[[Workers], None]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    dist.init_process_group("gloo", rank=rank, world_size=count, timeout=PATIENCE)
    try:
        work(Workers(rank, count))
    finally:
        dist.destroy_process_group()


def _end_with_parent() -> None:
    """However the parent ends, by a signal too, its workers do not go on without it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
