"""Compare a run of two processes with the same run of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpt.training.engine import run_folder
from tests.training.children import as_main, ranks


def run(module: str, model: Path, root: Path) -> str:
    """Run `python -m MODULE MODEL ROOT 1` in two processes and return their output."""
    return ranks(lambda: as_main(module, str(model), str(root), "1"))


def assert_same(one: Path, two: Path, losses: Callable[[Path], Sequence[Mapping[str, float]]], step: int = 10) -> None:
    """Assert equal losses at each step and equal weights at the end, up to rounding."""
    for first, second in zip(losses(one), losses(two), strict=True):
        assert second == pytest.approx(first, rel=1e-5, abs=1e-5)
    worst, name = apart(one, two, step)
    assert worst < 1e-5, name


def apart(one: Path, two: Path, step: int) -> tuple[float, str]:
    """The largest difference of weights after a step, and the name of that weight."""
    weights = [run_folder.load(root / f"checkpoint-{step}")[0]["weights"] for root in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    return max((float(_apart(name, tensor, weights[1][name]).max()), name) for name, tensor in weights[0].items())


def _apart(name: str, tensor: Tensor, other: Tensor) -> Tensor:
    difference = (tensor - other).abs()
    if name.endswith("attn.in_proj_bias"):
        # A bias of keys shifts all of a query's logits alike: its gradient is nothing but rounding, of which
        # AdamW makes steps of the ordinary size.
        return torch.cat(difference.chunk(3)[::2])
    return difference
