"""What every benchmark here is made with: ways to do one thing, timed in turns, and a place to keep what was found.

Ways take turns, round by round, so that what else the machine does slows all of them alike; what counts is the ratio
of two ways within a round, its median and its range. Seconds are those of this machine on that day.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpt.cli.common.console import versions

Work = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """One way, beside the first of them."""

    name: str
    ms: float
    ratio: float
    low: float
    high: float

    @property
    def cells(self) -> list[str]:
        return [self.name, f"{self.ms:,.0f}" if self.ms >= 100 else f"{self.ms:.3g}", self.compared]

    @property
    def compared(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f}-{self.high:.2f})"


def in_turns(ways: Mapping[str, Work], rounds: int, device: torch.device, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each way in each round, those for warming up left out."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm + rounds):
        for name, work in ways.items():
            seconds = seconds_of(work, device)
            if turn >= warm:
                took[name].append(seconds)
    return took


def seconds_of(work: Work, device: torch.device) -> float:
    """On a GPU by its own clock, from when it begins to when it has nothing left to do."""
    if device.type != "cuda":
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def compared(took: Mapping[str, Sequence[float]]) -> list[Timed]:
    """Each way beside the first, round by round."""
    least = next(iter(took.values()))
    found = []
    for name, own in took.items():
        ratios = [mine / base for mine, base in zip(own, least, strict=True)]
        found.append(Timed(name, 1e3 * statistics.median(own), statistics.median(ratios), min(ratios), max(ratios)))
    return found


def peak_bytes(work: Work, device: torch.device) -> int:
    """The most that tensors take at once, beyond what is there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    results: Any = profiled.profiler.kineto_results
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def kept_bytes(work: Callable[[], Tensor], parts: Iterable[nn.Module]) -> int:
    """What waits for the backward pass of a result; the weights of `parts`, and views of them, are not counted."""
    weights = {p.untyped_storage().data_ptr() for part in parts for p in part.parameters()}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = work()
        held = sum(found.values())
    del result
    return held


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(heads), "|".join(["---"] * len(heads)), *(" | ".join(row) for row in rows)]
    return "\n".join(f"|{line}|" if line.startswith("---") else f"| {line} |" for line in lines)


def keep(out: Path | None, name: str, tables: str, numbers: Any, device: torch.device) -> None:
    """Print it; and into a folder: what was printed, and all numbers with where, when and by what they were made."""
    print(tables)
    if out is None:
        return
    record = {
        "command": command(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(device),
        "versions": versions(),
        "found": numbers,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(record, indent=1, default=_plain) + "\n")
    (out / f"{name}.md").write_text(f"{tables}\n")


def _plain(value: Any) -> Any:
    """Options and timings as their fields; where it is kept is no part of what was found."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: one for name, one in asdict(value).items() if name != "out"}
    return str(value)


def command() -> str:
    """As it was typed, but for where the files are kept."""
    words = list(sys.argv[1:])
    while "--out" in words:
        at = words.index("--out")
        del words[at : at + 2]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads a process"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
