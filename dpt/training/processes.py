"""What the processes of a run tell one another: sums, and whether anything happened anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from dpt.errors import UserError

PATIENCE = timedelta(minutes=30)
"""How long a process waits for another: one may still be fetching the model."""


class LostProcess(UserError):
    """Nothing that the user got wrong: the same command goes on (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


@contextmanager
def _listening(accelerator: Accelerator) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or "out of memory" in str(error):
            raise
        raise LostProcess(
            f"process {accelerator.process_index} hears nothing more of another process of this run, so it ends too: "
            f"the same command goes on from the newest checkpoint ({str(error).splitlines()[0].split('. ')[0]})"
        ) from error


def sum_over(accelerator: Accelerator, own: Tensor) -> Tensor:
    with _listening(accelerator):
        return accelerator.reduce(own, reduction="sum")


def mean_over(accelerator: Accelerator, own: Tensor) -> Tensor:
    with _listening(accelerator):
        return accelerator.reduce(own, reduction="mean")


def meet(accelerator: Accelerator) -> None:
    """Nobody goes on before everybody is here."""
    with _listening(accelerator):
        accelerator.wait_for_everyone()


def require_alike(accelerator: Accelerator, step: int, root: Path) -> None:
    """All have found the same checkpoint."""
    with _listening(accelerator):
        steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if odd := [process for process, other in enumerate(steps) if other != steps[0]]:
        raise UserError(
            f"process 0 would go on after step {steps[0]} and process {odd[0]} after step {steps[odd[0]]}: "
            f"the machines of a run must share the file system of {root}"
        )


def anywhere(accelerator: Accelerator, own: Tensor) -> Tensor:
    """True on every process if it is true on one. Stays on the device."""
    return sum_over(accelerator, own.float()) > 0


def agreed(accelerator: Accelerator, own: bool) -> bool:
    """The same for a value of the host, which waits for the answer."""
    if accelerator.num_processes == 1:
        return own
    return bool(anywhere(accelerator, torch.tensor(float(own), device=accelerator.device)))
