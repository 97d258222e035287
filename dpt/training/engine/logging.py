"""Metrics, trackers, the banner before the first step, and the curve of a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dpt.distributed import mean_over
from dpt.errors import UserError
from dpt.records import is_number
from dpt.training.engine.run_folder import LOG
from dpt.training.engine.settings import BatchPlan
from dpt.untrusted import parse_json


@dataclass(frozen=True)
class MetricsSnapshot:
    means: dict[str, float]
    """Of the steps that were applied; empty if none was."""
    steps: tuple[int, ...]
    """Since the last reading."""
    bad: tuple[int, ...]
    """Those of them that were not finite and not applied."""


class Metrics:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: tuple[str, ...] = ()
        self.sums: Tensor | None = None
        self.flags: list[Tensor] = []
        self.steps: list[int] = []

    def add(self, step: int, values: Mapping[str, Tensor], bad: Tensor) -> None:
        """Values of one step, of which each process has its own; `bad` is the same for all."""
        if not self.names:
            self.names = tuple(values)
        stacked = torch.stack([values[name].detach().float().to(self.device) for name in self.names])
        kept = torch.where(bad, torch.zeros_like(stacked), stacked)
        self.sums = kept if self.sums is None else self.sums + kept
        self.flags.append(bad.float())
        self.steps.append(step)

    def read(self, accelerator: Accelerator) -> MetricsSnapshot:
        sums, flags = self._held()
        numbers = torch.cat([mean_over(accelerator, sums), flags]).tolist()
        totals, bad = numbers[: len(self.names)], numbers[len(self.names) :]
        good = bad.count(0.0)
        means = {name: total / good for name, total in zip(self.names, totals, strict=True)} if good else {}
        steps = tuple(self.steps)
        self._clear()
        return MetricsSnapshot(means, steps, tuple(step for step, flag in zip(steps, bad, strict=True) if flag))

    def tensors(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """What a checkpoint between two readings needs, so that the next reading is the uninterrupted run's."""
        sums, flags = self._held()
        steps = torch.tensor(self.steps, dtype=torch.int64)
        return {"sums": mean_over(accelerator, sums), "flags": flags, "steps": steps}

    def restore(self, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
        if len(tensors["steps"]) == 0:
            return
        self.names = tuple(names)
        self.sums = tensors["sums"].to(self.device)
        self.flags = list(tensors["flags"].to(self.device).unbind())
        self.steps = tensors["steps"].tolist()

    def _held(self) -> tuple[Tensor, Tensor]:
        sums = torch.zeros(len(self.names), device=self.device) if self.sums is None else self.sums
        return sums, torch.stack(self.flags) if self.flags else torch.zeros(0, device=self.device)

    def _clear(self) -> None:
        self.sums, self.flags, self.steps = None, [], []


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


def banner(parameters: Iterable[Tensor], bytes_each: int, split: BatchPlan, memory: Mapping[str, int]) -> str:
    trained = sum(p.numel() for p in parameters)
    held = {"what is trained": bytes_each * trained, **memory}
    parts = ", ".join(f"{name} {_format_count(count)}" for name, count in held.items())
    return "\n".join(
        [
            f"effective batch: {split.global_batch} = {split.batch} examples x {split.accumulation} accumulated "
            f"x {split.processes} {'process' if split.processes == 1 else 'processes'}",
            f"trainable parameters: {trained:,}",
            f"memory of each device, estimated: {_format_count(sum(held.values()))} ({parts})",
        ]
    )


def _format_count(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


NOT_LOSSES = ("step", "images", "lr", "bad_steps", "seconds", "data_share", "grad_norm", "cardinality_error")


def read_log(root: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The readings of the losses, and the validations."""
    file = root / LOG
    try:
        lines = [parse_json(line) for line in file.read_text().splitlines()]
    except OSError as error:
        raise UserError(f"there is no run in {root}: {file.name} cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{file} is not a log of this project: one of its lines is not JSON") from None
    for line in lines:
        if not (isinstance(line, dict) and is_number(line.get("step")) and _has_numbers(line)):
            raise UserError(f"{file} is not a log of this project: {str(line)[:80]} are no readings of a step")
    if not lines:
        raise UserError(f"{file} is empty: nothing was trained")
    validations = [line for line in lines if "validation" in line]
    return [line for line in lines if "validation" not in line], validations


def _has_numbers(line: Mapping[str, Any]) -> bool:
    shares = line.get("validation", {})
    return isinstance(shares, dict) and all(
        isinstance(value, int | float) for name, value in {**line, **shares}.items() if name != "validation"
    )


def plot_curve(root: Path, file: Path, title: str = "") -> None:
    """Losses on the left, those of held-out pictures with dots; shares of right answers on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    losses, validations = read_log(root)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    names = [name for name in losses[-1] if name not in NOT_LOSSES] if losses else []
    for name in names:
        steps, values = zip(*((one["step"], one[name]) for one in losses if name in one), strict=True)
        left.plot(steps, _smoothed(values), label=name, linewidth=2 if name == "loss" else 1)
    for name in validations[-1]["validation"] if validations else []:
        steps, values = zip(*((one["step"], one["validation"][name]) for one in validations), strict=True)
        if name in names:
            left.plot(steps, values, "o:", markersize=3, linewidth=1, label=f"{name}, held out")
        else:
            right.plot(steps, [100 * share for share in values], marker="o", markersize=3, label=name)
    left.set(title="losses, smoothed", xlabel="step", yscale="log")
    left.legend(fontsize=8, ncols=2)
    right.set(title="validation, %", xlabel="step", ylim=(0, 100))
    right.grid(alpha=0.3)
    if right.lines:
        right.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def _smoothed(values: Sequence[float], over: int = 9) -> list[float]:
    """The mean of each value and those close before it."""
    return [sum(values[max(0, i - over + 1) : i + 1]) / min(over, i + 1) for i in range(len(values))]
