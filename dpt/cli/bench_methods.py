"""The methods that a benchmark knows by name, and those that are said with a path."""

from __future__ import annotations

from collections.abc import Sequence

from dpt.cli.embedded import CHECKOUT, EMBEDDED_CKPT, EMBEDDED_CONTROL
from dpt.errors import fail
from dpt.evaluation.bench.methods import BASE, Method, parse_method
from dpt.sampling.options import recommended


def registry(steps: int) -> dict[str, Method]:
    """An entry each: the model itself, what was trained on the embedded one, and ways to draw by that."""
    control, trained = CHECKOUT / EMBEDDED_CONTROL, CHECKOUT / EMBEDDED_CKPT
    entries = [
        Method(BASE),
        Method("control", control),
        Method("dpt", trained),
        Method("corrected", trained, correction=recommended(steps)),
        Method("best4", trained, candidates=4),
    ]
    return {one.name: one for one in entries}


def parse_methods(said: Sequence[str], steps: int) -> list[Method]:
    known = registry(steps)
    if not said:
        fail(f"say which methods to run: any of {', '.join(known)}, or NAME=PATH of a checkpoint")
    methods = [known.get(one) or parse_method(one) for one in said]
    names = [one.name for one in methods]
    if twice := next((name for name in names if names.count(name) > 1), None):
        fail(f"the method {twice!r} is there twice")
    return methods
