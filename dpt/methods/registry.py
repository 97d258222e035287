"""Methods by name: the model with or without a checkpoint, and how it samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpt.embedded import CHECKOUT, EMBEDDED_CKPT, EMBEDDED_CONTROL, embedded_defaults
from dpt.errors import UserError, fail
from dpt.sampling.options import NO_CORRECTION, PUBLISHED_TARGET, Correction, Interval, recommended_correction

BASE = "base"

LONGEST_NAME = 60


@dataclass(frozen=True)
class Method:
    name: str
    checkpoint: Path | None = None
    lora: bool = True
    """Whether the checkpoint's LoRA is used, where there is one."""
    correction: Correction = NO_CORRECTION
    candidates: int = 1
    """Pictures drawn for each that is kept: the one that the adapter finds to match best."""

    @property
    def reads(self) -> bool:
        """Whether an adapter is needed."""
        return self.correction.on or self.candidates > 1

    def __post_init__(self) -> None:
        check_method_name(self.name)
        if self.candidates < 1:
            raise UserError(f"the method {self.name} needs at least 1 candidate, not {self.candidates}")
        if self.checkpoint is None and (self.reads or self.name != BASE):
            raise UserError(f"the method {self.name!r} names no checkpoint: say {self.name}=FOLDER")


def check_method_name(name: str) -> None:
    if len(name) > LONGEST_NAME or not name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"the method {name!r} becomes a file's name: use letters, digits, - and _")


KEYS: Mapping[str, Callable[[str], Any]] = {
    "factor": float,
    "target": str,
    "norm": str,
    "start": float,
    "end": float,
    "every": int,
    "candidates": int,
    "lora": {"on": True, "off": False}.__getitem__,
}
"""What may stand after a method's path, as in dpt=FOLDER,factor=0.5,target=fused."""


def parse_method(said: str) -> Method:
    name, given, rest = said.partition("=")
    path, *words = rest.split(",")
    told: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS:
            raise UserError(f"the method {name} is told {word!r}; it may be told {', '.join(KEYS)}, each as KEY=VALUE")
        try:
            told[key] = KEYS[key](value)
        except (ValueError, KeyError):
            raise UserError(f"the method {name} has {key}={value}, which cannot be") from None
    interval = Interval(told.pop("start", 0.0), told.pop("end", 1.0))
    candidates, lora = told.pop("candidates", 1), told.pop("lora", True)
    if "factor" in told:
        told.setdefault("target", PUBLISHED_TARGET)
    try:
        correction = Correction(interval=interval, **told)
    except UserError as error:
        raise UserError(f"the method {name}: {error}") from None
    if told and not correction.on:
        raise UserError(f"the method {name} says how to correct, but no factor")
    return Method(name, Path(path) if given else None, lora, correction, candidates)


def known_methods(steps: int) -> dict[str, Method]:
    """An entry each: the model itself, what was trained on the embedded one, and ways to draw by that."""
    control, trained = CHECKOUT / EMBEDDED_CONTROL, CHECKOUT / EMBEDDED_CKPT
    entries = [
        Method(BASE),
        Method("control", control),
        Method("dpt", trained),
        Method("corrected", trained, correction=recommended_correction(embedded_defaults().correction, steps)),
        Method("best4", trained, candidates=4),
    ]
    return {one.name: one for one in entries}


def parse_methods(said: Sequence[str], steps: int) -> list[Method]:
    known = known_methods(steps)
    if not said:
        fail(f"say which methods to run: any of {', '.join(known)}, or NAME=PATH of a checkpoint")
    methods = [known.get(one) or parse_method(one) for one in said]
    names = [one.name for one in methods]
    if twice := next((name for name in names if names.count(name) > 1), None):
        fail(f"the method {twice!r} is there twice")
    return methods
