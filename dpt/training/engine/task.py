"""What the loop trains, as the loop sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from dpt.backbone.rng import SampleRNG
from dpt.data.example import Batch, ExampleParts

Tally = Mapping[str, tuple[float, float]]
"""For each question of a validation, how often it was answered rightly and how often it was asked."""


class Task(Protocol):
    @property
    def trained(self) -> nn.Module:
        """Its parameters that ask for gradients are trained, in float32; the loop sets it to train or eval."""

    @property
    def weights(self) -> Mapping[str, float]:
        """How much each loss weighs in the total. A value without a weight is only logged."""

    @property
    def parts(self) -> ExampleParts:
        """What its losses read of an example; nothing else is decoded."""

    def count(self, batch: Batch) -> int:
        """How many things the losses that are sums are summed over; known on the host."""

    def losses(self, batch: Batch, chance: SampleRNG, share: Tensor) -> dict[str, Tensor]:
        """Named scalars, always of the same names. Sums are divided by `share`: the mean count of a micro-batch.

        Their mean over all micro-batches of all processes is then that of the global batch, however it is split.
        """

    def validate(self, part: int, parts: int) -> Tally:
        """Tally of every `parts`-th validation example, beginning with `part`: the same examples at any time."""

    def memory(self, examples: int) -> Mapping[str, int]:
        """Estimated bytes on the device by what they hold, for a micro-batch of so many examples."""
