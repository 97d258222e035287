"""What can be trained, as the loop sees it: a task, its batches, and the groups of parameters it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from dpt.backbone.rng import SampleRNG
from dpt.data.example import ExampleParts

Tally = Mapping[str, tuple[float, float]]
"""For each validation metric, its sum and the number of examples it was summed over."""

OnBatch = Callable[[int], None]
"""Called during validation with the number of examples just done. It may raise to end the validation early."""

Self_ = TypeVar("Self_")
B = TypeVar("B", bound="TrainingBatch")
B_contra = TypeVar("B_contra", bound="TrainingBatch", contravariant=True)
B_co = TypeVar("B_co", bound="TrainingBatch", covariant=True)


class TrainingBatch(Protocol):
    def __len__(self) -> int: ...

    def to(self: Self_, device: torch.device | str, non_blocking: bool = False) -> Self_: ...


class BatchStream(Protocol[B_co]):
    """Batches by position; a position always gives the same example. `dpt.data.stream.Stream` is one."""

    def only(self: Self_, parts: ExampleParts) -> Self_:
        """The same examples, reduced to what a task reads of them."""

    def batches(self, positions: Iterable[Sequence[int]], workers: int = 0, pin_memory: bool = False) -> Iterator[B_co]:
        """A batch for each sequence of positions, in order."""

    def example_id(self, position: int) -> str:
        """For error messages."""


@dataclass(frozen=True)
class ParameterGroup:
    named: Mapping[str, nn.Parameter]
    decays: bool = True
    """Whether weight decay applies."""
    learning_rate: float | None = None
    """The peak rate, where it is not that of the settings."""
    limits: tuple[float, float] | None = None
    """Least and largest value: after each update its parameters are clamped to them."""


Grouping = Callable[[nn.Module], list[ParameterGroup]]


class Task(Protocol[B_contra]):
    """Generic over its batch. `dpt.training.engine.loop.run_task` trains it."""

    @property
    def trained(self) -> nn.Module:
        """Holds every trained parameter, in float32; the loop switches it between train and eval mode."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss in the total. A value without a weight is only logged."""

    @property
    def parts(self) -> ExampleParts:
        """What its losses read of an example; nothing else is decoded."""

    @property
    def scales_loss(self) -> bool:
        """Whether gradients cross a float16 model, so that the loss must be scaled."""

    @property
    def num_validation_examples(self) -> int:
        """How many examples `validate` reads over all parts; 0 without validation."""

    @property
    def folders(self) -> Sequence[str]:
        """The names of the folders that `export` writes."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Every trained parameter, once."""

    def count(self, batch: B_contra) -> int:
        """The number of boxes that the losses of a batch are summed over; known on the host."""

    def losses(self, batch: B_contra, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
        """Named scalars, always of the same names: means over examples, or sums divided by `num_boxes`.

        `num_boxes` is the mean count of a micro-batch, so that the mean over all micro-batches of all processes is
        that of the global batch, however it is split. Where a batch has weights, each example's loss is weighted.
        """

    def validate(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        """Metrics of every `parts`-th validation example from `part` on: the same examples each time."""

    def memory(self, examples: int) -> Mapping[str, int]:
        """Estimated bytes on the device by what they hold, for a micro-batch of so many examples."""

    def export(self, root: Path, base: str = "") -> list[Path]:
        """Write what was trained into `folders` under `root`. `base` is the name of the frozen model."""


def all_decay(module: nn.Module) -> list[ParameterGroup]:
    """One group of everything trained, as in the published code."""
    return [ParameterGroup(trainable(module))]


def matrices_decay(module: nn.Module) -> list[ParameterGroup]:
    """No weight decay on biases, norms, embeddings and scalars such as a logit scale."""
    embeddings = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    named = trainable(module)
    matrices = {name: p for name, p in named.items() if p.ndim > 1 and id(p) not in embeddings}
    others = {name: p for name, p in named.items() if name not in matrices}
    groups = (ParameterGroup(matrices), ParameterGroup(others, decays=False))
    return [group for group in groups if group.named]


def with_own_rate(groups: Iterable[ParameterGroup], module: str, learning_rate: float) -> list[ParameterGroup]:
    """The same groups, but the parameters of the module of that name learn at a rate of their own."""
    split = []
    for group in groups:
        own = {name: p for name, p in group.named.items() if f".{module}." in f".{name}"}
        rest = {name: p for name, p in group.named.items() if name not in own}
        split += [replace(group, named=rest)] if rest else []
        split += [replace(group, named=own, learning_rate=learning_rate)] if own else []
    return split


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
