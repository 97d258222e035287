"""Metrics, trackers, the banner before the first step, and the plot of a finished run."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpt.distributed import Processes
from dpt.errors import UserError
from dpt.records import is_number
from dpt.training.engine.run_folder import LOG, append_log
from dpt.training.engine.settings import BatchPlan
from dpt.untrusted import parse_json, read_text

if TYPE_CHECKING:
    from accelerate import Accelerator


APPLIED, BAD, OVERFLOWED = 0.0, 1.0, 2.0
"""What became of a step: applied; skipped since its loss or gradient was not finite; skipped since the scaled gradient
overflowed float16, which a smaller loss scale mends."""


@dataclass(frozen=True)
class MetricsSnapshot:
    means: dict[str, float]
    """Over the applied steps; empty if there was none."""
    steps: tuple[int, ...]
    """Since the last reading."""
    bad: tuple[int, ...]
    overflowed: tuple[int, ...] = ()


class Metrics:
    """Sums of the losses on the device, read every `logging_steps` steps."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = device
        self.names: tuple[str, ...] = ()
        self.sums: Tensor | None = None
        self.status: list[Tensor] = []
        self.steps: list[int] = []

    def add(self, step: int, values: Mapping[str, Tensor], status: Tensor) -> None:
        """Add the values of one step. Each process has its own values; `status` is the same for all."""
        if not self.names:
            self.names = tuple(values)
        stacked = torch.stack([values[name].detach().float().to(self.device) for name in self.names])
        kept = torch.where(status != APPLIED, torch.zeros_like(stacked), stacked)
        self.sums = kept if self.sums is None else self.sums + kept
        self.status.append(status)
        self.steps.append(step)

    def read(self, processes: Processes) -> MetricsSnapshot:
        sums, status = self._accumulated()
        numbers = torch.cat([processes.mean(sums), status]).tolist()
        totals, flags = numbers[: len(self.names)], numbers[len(self.names) :]
        applied = flags.count(APPLIED)
        means = {name: total / applied for name, total in zip(self.names, totals, strict=True)} if applied else {}
        steps = tuple(self.steps)
        bad, overflowed = (
            tuple(step for step, flag in zip(steps, flags, strict=True) if flag == kind) for kind in (BAD, OVERFLOWED)
        )
        self.sums, self.status, self.steps = None, [], []
        return MetricsSnapshot(means, steps, bad, overflowed)

    def tensors(self, processes: Processes) -> dict[str, Tensor]:
        """The state that a checkpoint stores, so that a resumed run logs the same means."""
        sums, status = self._accumulated()
        steps = torch.tensor(self.steps, dtype=torch.int64)
        return {"sums": processes.mean(sums), "flags": status, "steps": steps}

    def restore(self, tensors: Mapping[str, Tensor], names: Sequence[str], where: str) -> None:
        if {"sums", "flags", "steps"} - tensors.keys():
            raise UserError(f"the checkpoint {where} lacks the losses since the last log line")
        sums, status, steps = (tensors[name] for name in ("sums", "flags", "steps"))
        if sums.ndim != 1 or steps.ndim != 1 or status.shape != steps.shape or len(sums) not in (0, len(names)):
            raise UserError(f"the losses in the checkpoint {where} do not have one value for each name and step")
        if len(steps) == 0:
            return
        self.names = tuple(names)
        self.sums = sums.to(self.device)
        self.status = list(status.to(self.device).unbind())
        self.steps = steps.tolist()

    def _accumulated(self) -> tuple[Tensor, Tensor]:
        sums = torch.zeros(len(self.names), device=self.device) if self.sums is None else self.sums
        return sums, torch.stack(self.status) if self.status else torch.zeros(0, device=self.device)


CLOCK_NAMES = ("seconds", "data_share")
"""Log entries for speed: the only ones that differ between two identical runs."""

Tracker = Callable[[Mapping[str, Any], int], None]
"""Takes named values and the step."""


class RunLog:
    """Records of the main process in log.jsonl and the tracker, and the clock of the training steps."""

    def __init__(self, root: Path, tracker: Tracker | None, is_main: bool) -> None:
        self.root, self.tracker, self.is_main = root, tracker, is_main
        self.started, self.data_seconds = time.monotonic(), 0.0

    def clock(self) -> dict[str, float]:
        seconds = time.monotonic() - self.started
        return {"seconds": round(seconds, 3), "data_share": round(self.data_seconds / seconds, 4)}

    def write(self, record: Mapping[str, Any], prefix: str) -> None:
        if self.is_main:
            append_log(self.root, record)
        if self.tracker is not None:
            values = record.get("validation", record)
            self.tracker({f"{prefix}/{name}": value for name, value in values.items()}, record["step"])


MODULES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


def choose_trackers(report_to: str | None) -> list[str]:
    """By default tensorboard where it is installed; a named tracker that is not installed is warned of."""
    if report_to is None:
        return [name for name in ("tensorboard",) if _installed(name)]
    if report_to == "none":
        return []
    if report_to != "all" and report_to not in MODULES:
        raise UserError(f"--report_to is one of {', '.join(MODULES)}, all or none, not {report_to!r}")
    if report_to == "all":
        return [name for name in MODULES if _installed(name)]
    if not _installed(report_to):
        warnings.warn(f"{report_to} is not installed: the losses are in log.jsonl only", stacklevel=2)
        return []
    return [report_to]


def start_trackers(accelerator: Accelerator, config: Mapping[str, Any]) -> None:
    """Trackers take numbers and strings, not lists."""
    if not accelerator.log_with:
        return
    plain = {key: value if isinstance(value, int | float | str | bool) else str(value) for key, value in config.items()}
    try:
        accelerator.init_trackers("dpt", config=plain)
    except Exception as error:  # training does not depend on a tracker
        warnings.warn(f"the trackers cannot be started ({error}): the losses are in log.jsonl only", stacklevel=2)
        accelerator.trackers = []


def _installed(name: str) -> bool:
    return any(find_spec(module) is not None for module in MODULES[name])


def banner(parameters: Iterable[Tensor], bytes_each: int, plan: BatchPlan, memory: Mapping[str, int]) -> str:
    """Effective batch, trained parameters and estimated memory."""
    trained = sum(p.numel() for p in parameters)
    estimate = {"trained weights": bytes_each * trained, **memory}
    parts = ", ".join(f"{name} {_format_bytes(count)}" for name, count in estimate.items())
    return "\n".join(
        [
            f"effective batch: {plan.global_batch} = {plan.batch} examples x {plan.accumulation} accumulated "
            f"x {plan.processes} {'process' if plan.processes == 1 else 'processes'}",
            f"trainable parameters: {trained:,}",
            f"estimated memory per device: {_format_bytes(sum(estimate.values()))} ({parts})",
        ]
    )


def peak_memory(device: torch.device) -> str:
    """The most memory used so far: what PyTorch holds on a GPU, or the whole process; "" where it is not known."""
    if device.type == "cuda":
        return f"{_format_bytes(torch.cuda.max_memory_allocated(device))} of the GPU's memory used at most"
    if find_spec("resource") is None:  # Windows
        return ""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return f"{_format_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)} of memory used at most"


def _format_bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


NOT_LOSSES = (
    "step", "images", "lr", "bad_steps", "overflowed_steps", "loss_scale", "seconds", "data_share", "grad_norm",
    "cardinality_error",
)  # fmt: skip


def read_log(root: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of the losses, and those of the validations."""
    file = root / LOG
    try:
        lines = [parse_json(line) for line in read_text(file).splitlines()]
    except OSError as error:
        raise UserError(f"there is no run in {root}: {file.name} cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{file} is not a log of this project: one of its lines is not JSON") from None
    for line in lines:
        if not (isinstance(line, dict) and is_number(line.get("step")) and _has_numbers(line)):
            raise UserError(f"{file} is not a log of this project: {str(line)[:80]} is not the record of a step")
    if not lines:
        raise UserError(f"{file} is empty: nothing was trained")
    validations = [line for line in lines if "validation" in line]
    return [line for line in lines if "validation" not in line], validations


def _has_numbers(line: Mapping[str, Any]) -> bool:
    metrics = line.get("validation", {})
    return isinstance(metrics, dict) and all(
        isinstance(value, int | float) for name, value in {**line, **metrics}.items() if name != "validation"
    )


def plot_curve(root: Path, file: Path, title: str = "") -> None:
    """Losses on the left, held-out losses dotted; accuracies on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    losses, validations = read_log(root)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    names = [name for name in losses[-1] if name not in NOT_LOSSES] if losses else []
    for name in names:
        steps, values = zip(*((line["step"], line[name]) for line in losses if name in line), strict=True)
        left.plot(steps, _smoothed(values), label=name, linewidth=2 if name == "loss" else 1)
    for name in validations[-1]["validation"] if validations else []:
        steps, values = zip(*((line["step"], line["validation"][name]) for line in validations), strict=True)
        if name in names:
            left.plot(steps, values, "o:", markersize=3, linewidth=1, label=f"{name}, held out")
        else:
            right.plot(steps, [100 * value for value in values], marker="o", markersize=3, label=name)
    left.set(title="losses, smoothed", xlabel="step", yscale="log")
    left.legend(fontsize=8, ncols=2)
    right.set(title="validation, %", xlabel="step", ylim=(0, 100))
    right.grid(alpha=0.3)
    if right.lines:
        right.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def _smoothed(values: Sequence[float], window: int = 9) -> list[float]:
    """Trailing moving average."""
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(values))]
