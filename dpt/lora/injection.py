"""A LoRA in a UNet: put there, taken away again, or made one with the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dpt.backbone.rng import derived_seed
from dpt.lora.config import LoraConfig
from dpt.weights import load_strictly

NAME = "dpt"
"""What the layers are called inside peft."""


class LoraTarget(Protocol):
    """What a LoRA needs of a `Backbone`."""

    @property
    def network(self) -> Any: ...

    def lora_targets(self, blocks: Sequence[str]) -> list[str]: ...


class Lora:
    """The low-rank pairs of one UNet, in float32 whatever the format of its own weights.

    Tensors are named as diffusers and peft name them, after the UNet's module: `….to_q.lora_A.weight` (rank, in) and
    `….to_q.lora_B.weight` (out, rank).
    """

    def __init__(self, backbone: LoraTarget, config: LoraConfig, seed: int = 0) -> None:
        """Put it there. A ~ N(0, 1/rank) and B = 0: at first nothing changes."""
        from peft import LoraConfig as PeftConfig

        network = backbone.network
        self.network, self.config = network, config
        self.places = backbone.lora_targets(config.blocks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, 0, "lora"))
            network.add_adapter(
                PeftConfig(
                    r=config.rank,
                    lora_alpha=config.strength,  # type: ignore[arg-type]  # peft divides it: any number will do
                    target_modules=self.places,
                    init_lora_weights="gaussian",
                ),
                adapter_name=NAME,
            )
        self.layers: dict[str, Any] = {place: network.get_submodule(place) for place in self.places}
        self.weights = _tree(self._pairs())

    def _pairs(self) -> dict[str, nn.Parameter]:
        """The parameters, made float32: a half format would lose the small steps that training takes."""
        pairs = {}
        for place, layer in self.layers.items():
            for matrix in ("lora_A", "lora_B"):
                linear = getattr(layer, matrix)[NAME].float()
                pairs[f"{place}.{matrix}.weight"] = linear.weight.requires_grad_(True)
        return pairs

    def state(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.weights.named_parameters()}

    def load(self, tensors: Mapping[str, Tensor], where: str) -> int:
        """Fill every tensor and leave none over, or change nothing and say why; how many were filled."""
        return load_strictly(self.weights, tensors, where, into="this LoRA")

    @contextmanager
    def without(self) -> Iterator[None]:
        """Inside, the UNet computes as if it had none."""
        self.network.disable_adapters()
        try:
            yield
        finally:
            self.network.enable_adapters()

    def change(self, place: str) -> Tensor:
        """What it adds to the weights of one projection: (alpha / rank) B A."""
        a, b = (self.weights.get_parameter(f"{place}.lora_{matrix}.weight") for matrix in "AB")
        return self.config.scale * (b @ a)

    @torch.no_grad()
    def merge(self) -> None:
        """Make it one with the UNet's weights and take it away: the same pictures, at the speed of the bare model."""
        changes = {place: self.change(place) for place in self.places}
        self.remove()
        for place, change in changes.items():
            weight = self.network.get_submodule(place).weight
            weight.copy_((weight.float() + change).to(weight.dtype))

    def remove(self) -> None:
        """Take it away: the UNet is as it was."""
        self.network.delete_adapters(NAME)
        self.network.unload_lora()


def _tree(named: Mapping[str, nn.Parameter]) -> nn.Module:
    """The parameters as a module of their own, under the same names and shared with where they came from."""
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
