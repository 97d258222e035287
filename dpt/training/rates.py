"""Learning-rate schedules under the names that diffusers gives them, as functions of the optimizer step.

They count steps of the optimizer and nothing else, so they end where they say for any number of processes and any
accumulation. Nothing is stored: a resumed run reads the rate off the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from dpt.errors import UserError

Shape = Callable[[float], float]
"""Share of the steps after the warm-up that are done, in [0, 1), to share of the peak rate."""

# diffusers' polynomial ends at this rate, whatever the peak.
POLYNOMIAL_END = 1e-7


def _polynomial(peak: float) -> Shape:
    end = POLYNOMIAL_END / peak
    return lambda done: (1 - end) * (1 - done) + end


SHAPES: dict[str, Callable[[float], Shape]] = {
    "constant": lambda peak: lambda done: 1.0,
    "constant_with_warmup": lambda peak: lambda done: 1.0,
    "linear": lambda peak: lambda done: 1 - done,
    "cosine": lambda peak: lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    # One cycle, which is what diffusers' scripts ask for: the cosine.
    "cosine_with_restarts": lambda peak: lambda done: 0.5 * (1 + math.cos(math.pi * (done % 1.0))),
    "polynomial": _polynomial,
}
FLAT = ("constant", "constant_with_warmup")
"""Those whose rate at a step does not depend on where the run ends."""


def check_schedule(name: str) -> None:
    if name not in SHAPES:
        raise UserError(f"--lr_scheduler is one of {', '.join(SHAPES)}, not {name!r}")


def rate(name: str, step: int, steps: int, peak: float, warmup: int) -> float:
    """The rate of the update after `step` updates; linear from zero while it warms up."""
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * SHAPES[name](peak)(done)
