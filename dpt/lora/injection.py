"""A LoRA in a network: injected, disabled, merged into the weights, or removed without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dpt.backbone.rng import derived_seed
from dpt.errors import UserError
from dpt.weights import load_strictly

LARGEST_SCALE = 1e4
"""Of alpha / rank. Useful ones are around 1; beyond this, float32 overflows and images are black."""


@dataclass(frozen=True)
class LoraConfig:
    """W + (alpha / rank) B A, with A (rank, in) and B (out, rank)."""

    rank: int = 4
    alpha: float | None = None
    """None: equal to the rank, so that the addition is not scaled, as published."""
    blocks: tuple[str, ...] = ("all",)
    """all as in the published code; down as the paper's figure draws it; mid, up; or blocks by their feature names."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"the rank of a LoRA must be at least 1, not {self.rank}")
        if self.alpha is not None and not (isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"the alpha of a LoRA must be positive, not {self.alpha:g}")
        if self.scale > LARGEST_SCALE:
            raise UserError(
                f"the alpha of a LoRA of rank {self.rank} must be at most {LARGEST_SCALE * self.rank:g}, "
                f"not {self.resolved_alpha:g}"
            )
        if not self.blocks:
            raise UserError("a LoRA must have at least one block, for instance all")

    @property
    def resolved_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)

    @property
    def scale(self) -> float:
        return self.resolved_alpha / self.rank


NAME = "dpt"
"""Name of the adapter inside peft."""


class LoraTarget(Protocol):
    """What a LoRA needs of a `Backbone`."""

    @property
    def network(self) -> Any: ...

    def lora_targets(self, blocks: Sequence[str]) -> list[str]: ...


class Lora:
    """The low-rank pairs of one network, in float32 whatever the dtype of its own weights.

    Tensors are named as diffusers and peft name them, after the network's module: `….to_q.lora_A.weight` (rank, in)
    and `….to_q.lora_B.weight` (out, rank).
    """

    def __init__(self, backbone: LoraTarget, config: LoraConfig, seed: int = 0) -> None:
        """Inject it, with A ~ N(0, 1/rank) and B = 0: the output does not change yet."""
        from peft import LoraConfig as PeftConfig

        network = backbone.network
        self.network, self.config = network, config
        self.targets = backbone.lora_targets(config.blocks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, 0, "lora"))
            network.add_adapter(
                PeftConfig(
                    r=config.rank,
                    lora_alpha=config.resolved_alpha,  # type: ignore[arg-type]  # peft divides it: a float will do
                    target_modules=self.targets,
                    init_lora_weights="gaussian",
                ),
                adapter_name=NAME,
            )
        self.weights = _as_module(self._parameters())

    def _parameters(self) -> dict[str, nn.Parameter]:
        """The parameters, converted to float32: half precision would lose the small steps of training."""
        parameters = {}
        for target in self.targets:
            layer = self.network.get_submodule(target)
            for matrix in ("lora_A", "lora_B"):
                linear = getattr(layer, matrix)[NAME].float()
                parameters[f"{target}.{matrix}.weight"] = linear.weight.requires_grad_(True)
        return parameters

    def state(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.weights.named_parameters()}

    def load(self, tensors: Mapping[str, Tensor], where: str) -> int:
        """Fill every tensor and return how many, or change nothing and raise UserError."""
        return load_strictly(self.weights, tensors, where, into="this LoRA")

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the network computes as if it had no LoRA."""
        self.network.disable_adapters()
        try:
            yield
        finally:
            self.network.enable_adapters()

    def delta_weight(self, target: str) -> Tensor:
        """(alpha / rank) B A, the addition to the weight of one module."""
        a, b = (self.weights.get_parameter(f"{target}.lora_{matrix}.weight") for matrix in "AB")
        return self.config.scale * (b @ a)

    @torch.no_grad()
    def merge(self) -> None:
        """Add it to the network's weights and remove it: the same output at the speed of the bare model."""
        deltas = {target: self.delta_weight(target) for target in self.targets}
        self.remove()
        for target, delta in deltas.items():
            weight = self.network.get_submodule(target).weight
            weight.copy_((weight.float() + delta).to(weight.dtype))

    def remove(self) -> None:
        """Remove it: the network is bit for bit as it was before."""
        self.network.delete_adapters(NAME)
        self.network.unload_lora()


def _as_module(named: Mapping[str, nn.Parameter]) -> nn.Module:
    """A module with these very parameters under these names."""
    root = nn.Module()
    for name, parameter in named.items():
        *path, last = name.split(".")
        at = root
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        at.register_parameter(last, parameter)
    return root
