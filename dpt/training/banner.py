"""What is said before the first step, so that a run that does not fit is seen at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from dpt.training.split import Split


def banner(parameters: Iterable[Tensor], bytes_each: int, split: Split, memory: Mapping[str, int]) -> str:
    trained = sum(p.numel() for p in parameters)
    held = {"what is trained": bytes_each * trained, **memory}
    parts = ", ".join(f"{name} {_size(count)}" for name, count in held.items())
    return "\n".join([
        f"effective batch: {split.global_batch} = {split.batch} examples x {split.accumulation} accumulated "
        f"x {split.processes} {'process' if split.processes == 1 else 'processes'}",
        f"trainable parameters: {trained:,}",
        f"memory of each device, estimated: {_size(sum(held.values()))} ({parts})",
    ])


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
