"""Where else losses are reported: trackers that are installed, and a sentence about those that are not."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from accelerate import Accelerator

from dpt.errors import UserError

MODULES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


def choose_trackers(asked: str | None) -> list[str]:
    """By default tensorboard where it is installed; one that is asked for and is not there is warned of."""
    if asked is None:
        return [name for name in ("tensorboard",) if _installed(name)]
    if asked == "none":
        return []
    if asked != "all" and asked not in MODULES:
        raise UserError(f"--report_to is one of {', '.join(MODULES)}, all or none, not {asked!r}")
    if asked == "all":
        return [name for name in MODULES if _installed(name)]
    if not _installed(asked):
        warnings.warn(f"{asked} is not installed: the losses are in log.jsonl only", stacklevel=2)
        return []
    return [asked]


def start_trackers(accelerator: Accelerator, config: Mapping[str, Any]) -> None:
    """Trackers take numbers and words, not lists."""
    if not accelerator.log_with:
        return
    plain = {key: value if isinstance(value, int | float | str | bool) else str(value) for key, value in config.items()}
    try:
        accelerator.init_trackers("dpt", config=plain)
    except Exception as error:  # a tracker that cannot start is no reason not to train
        warnings.warn(f"the trackers cannot be started ({error}): the losses are in log.jsonl only", stacklevel=2)
        accelerator.trackers = []


def _installed(name: str) -> bool:
    return any(find_spec(module) is not None for module in MODULES[name])
