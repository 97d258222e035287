"""An exponential moving average of what is trained: often a better model than the last step's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """avg <- decay avg + (1 - decay) weights, after each step that was applied."""

    def __init__(self, named: Mapping[str, nn.Parameter], decay: float) -> None:
        self.named, self.decay = named, decay
        self.tensors = {name: p.detach().clone() for name, p in named.items()}

    @torch.no_grad()
    def follow(self, bad: Tensor) -> None:
        """A step that was `bad` moves nothing; whether it was is not asked of the device."""
        share = (1 - self.decay) * (~bad).float()
        averages = list(self.tensors.values())
        weights: list[Tensor] = list(self.named.values())
        apart: list[Tensor] = list(torch._foreach_sub(weights, averages))
        torch._foreach_mul_(apart, share)
        torch._foreach_add_(averages, apart)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the average for weights."""
        own = {name: p.detach().clone() for name, p in self.named.items()}
        self._publish(self.tensors)
        try:
            yield
        finally:
            self._publish(own)

    @torch.no_grad()
    def _publish(self, tensors: Mapping[str, Tensor]) -> None:
        for name, p in self.named.items():
            p.copy_(tensors[name])
