"""The smallest task for the loop: regression on images of four numbers. A step takes a millisecond."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpt.backbone.rng import SampleRNG, generator_for
from dpt.data.example import (
    ALL_PARTS,
    Batch,
    Example,
    ExampleImage,
    ExampleParts,
    GroundedRegion,
    ReferringExpression,
    Source,
)
from dpt.data.stream import Stream
from dpt.training.engine import run_folder
from dpt.training.engine.loop import Loop
from dpt.training.engine.run_folder import RunConfig
from dpt.training.engine.settings import TrainSettings
from dpt.training.engine.task import OnBatch, ParameterGroup, Tally, matrices_decay

EXAMPLES = 10


class Numbers(Source):
    """Example i has i % 3 boxes."""

    def __len__(self) -> int:
        return EXAMPLES

    def example(self, index: int, epoch: int = 0, parts: ExampleParts = ALL_PARTS) -> Example:
        values = torch.randn(1, 2, 2, generator=generator_for(0, index, f"epoch {epoch}"))
        regions = (GroundedRegion((0.5, 0.5, 0.1, 0.1), ((0, 1),)),) * (index % 3)
        return Example(
            f"example {index}", ExampleImage(str(index), values), expression=ReferringExpression("x", regions)
        )


class Line:
    """The two kinds of loss: `mean` over samples, and `sum` over boxes."""

    weights: Mapping[str, float] = {"mean": 1.0, "sum": 0.5}
    parts = ALL_PARTS

    def __init__(self, dropout: float = 0.0, bad: range = range(0)) -> None:
        torch.manual_seed(1)
        self.trained = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Dropout(dropout), nn.Linear(3, 1))
        self.bad = bad
        """Positions whose loss is NaN."""
        self.seen: list[tuple[list[int], list[str]]] = []

    def count(self, batch: Batch) -> int:
        assert batch.expressions is not None
        return sum(batch.expressions.num_boxes)

    def losses(self, batch: Batch, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
        self.seen.append((list(rng.positions), batch.ids))
        assert batch.expressions is not None
        x = batch.images.flatten(1) + 0.1 * rng.normal((4,), "noise")
        y = self.trained(x)[:, 0]
        error = (y - x.sum(dim=1)) ** 2
        if any(position in self.bad for position in rng.positions):
            error = error * float("nan")
        boxes = torch.tensor(batch.expressions.num_boxes, dtype=torch.float32)
        return {"mean": error.mean(), "sum": (boxes * y.abs()).sum() / num_boxes, "watched": y.detach().mean()}

    scales_loss = False
    num_validation_examples = 1
    folders = ("line",)

    def parameter_groups(self) -> list[ParameterGroup]:
        return matrices_decay(self.trained)

    def validate(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        assert not self.trained.training
        on_batch(1)
        with torch.no_grad():
            y = self.trained(torch.ones(1, 4))
        return {"positive": (float(y > 0), 1.0)}

    def memory(self, examples: int) -> Mapping[str, int]:
        return {"pictures": 16 * examples}

    def export(self, root: Path, base: str = "") -> list[Path]:
        raise NotImplementedError


def settings(**changes: Any) -> TrainSettings:
    defaults = {
        "max_train_steps": 12,
        "train_batch_size": 4,
        "learning_rate": 1e-2,
        "checkpointing_steps": 4,
        "logging_steps": 3,
    }
    return TrainSettings(**{**defaults, **changes})


def loop(root: Path, task: Line | None = None, config: Mapping[str, Any] | None = None, **changes: Any) -> Loop:
    chosen = settings(**changes)
    record = RunConfig(config or {"what": "toy"})
    return Loop(task or Line(), Stream(Numbers(), chosen.seed), chosen, root, record)


def tensors(root: Path, step: int = 12) -> dict[str, Tensor]:
    groups, _ = run_folder.load(root / f"checkpoint-{step}")
    return {f"{group}/{name}": value for group, content in groups.items() for name, value in content.items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor], group: str = "weights") -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a if name.startswith(group))
