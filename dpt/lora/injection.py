"""A LoRA in a network or in CLIP text encoders: injected, disabled, merged, or removed without a trace."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from dpt.backbone.quantization import is_quantized
from dpt.backbone.rng import derived_seed
from dpt.errors import UserError
from dpt.weights import load_strictly

COMPONENTS = ("text_encoder", "text_encoder_2")

TEXT_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")

_TARGET = re.compile(
    rf"({'|'.join(COMPONENTS)})\.(encoder\.layers\.\d{{1,2}}\.self_attn)\.({'|'.join(TEXT_PROJECTIONS)})"
)


def is_text_target(name: str) -> bool:
    return _TARGET.fullmatch(name) is not None


def component_of(target: str) -> str:
    """The text encoder that a module lies in; "" for a module of the denoising network."""
    return target.partition(".")[0] if is_text_target(target) else ""


def whole_layers(targets: Iterable[str]) -> list[str]:
    """All projections of each attention layer that one of these modules lies in."""
    layers = dict.fromkeys(target.rpartition(".")[0] for target in targets)
    return [f"{layer}.{projection}" for layer in layers for projection in TEXT_PROJECTIONS]


class TextEncoderLora:
    """The low-rank pairs of the text encoders. Injection replaces modules, and removal puts them back."""

    def __init__(self, networks: Mapping[str, Any], targets: Sequence[str], adapter_name: str) -> None:
        self.networks, self.targets, self.adapter_name = networks, list(targets), adapter_name
        if unknown := [target for target in targets if not self._has(target)]:
            raise UserError(f"a LoRA has {unknown[0]}, which is in no text encoder of this model")

    def inject(self, peft_config: Any) -> None:
        """`peft_config(modules)` describes the addition to one text encoder."""
        from peft import inject_adapter_in_model

        for component, network in self.networks.items():
            if modules := [target.partition(".")[2] for target in self.targets if component_of(target) == component]:
                inject_adapter_in_model(peft_config(modules), network, self.adapter_name)

    def layer(self, target: str) -> Any:
        component, _, module = target.partition(".")
        return self.networks[component].get_submodule(module)

    def enable(self, on: bool) -> None:
        for target in self.targets:
            self.layer(target).enable_adapters(on)

    def remove(self) -> None:
        for target in self.targets:
            component, _, module = target.partition(".")
            parent, _, name = module.rpartition(".")
            setattr(self.networks[component].get_submodule(parent), name, self.layer(target).base_layer)
        for network in self.networks.values():
            if hasattr(network, "peft_config"):
                del network.peft_config

    def _has(self, target: str) -> bool:
        try:
            return isinstance(self.layer(target), nn.Linear)
        except (AttributeError, KeyError):
            return False


LARGEST_RANK = 2**16

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
    text_encoders: bool = False
    """Whether the attention of the text encoders has a LoRA too."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"the rank of a LoRA must be at least 1, not {self.rank}")
        if self.rank > LARGEST_RANK:
            raise UserError(f"the rank of a LoRA must be at most {LARGEST_RANK:,}")
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
    def flags(self) -> str:
        """The flags of training that give this shape."""
        texts = " --lora_text_encoders" if self.text_encoders else ""
        return (
            f"--lora_rank {self.rank} --lora_alpha {self.resolved_alpha:g} --lora_blocks {' '.join(self.blocks)}{texts}"
        )

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


class TextLoraTarget(LoraTarget, Protocol):
    """The same with text encoders."""

    def text_networks(self) -> Mapping[str, Any]: ...

    def text_lora_targets(self) -> list[str]: ...


class Lora:
    """The low-rank pairs of one network, in float32 whatever the dtype of its own weights.

    Tensors are named as diffusers and peft name them, after the network's module: `….to_q.lora_A.weight` (rank, in)
    and `….to_q.lora_B.weight` (out, rank).
    """

    def __init__(
        self, backbone: LoraTarget, config: LoraConfig, seed: int = 0, text_targets: Sequence[str] | None = None
    ) -> None:
        """Inject it, with A ~ N(0, 1/rank) and B = 0: the output does not change yet.

        `text_targets` are the modules of the text encoders, if they should not be all that the backbone names.
        """
        network = backbone.network
        self.network, self.config = network, config
        self.targets = backbone.lora_targets(config.blocks)
        self.text = _text_lora(cast(TextLoraTarget, backbone), text_targets) if config.text_encoders else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, 0, "lora"))
            network.add_adapter(_peft_config(config, self.targets), adapter_name=NAME)
            if self.text is not None:
                torch.manual_seed(derived_seed(seed, 0, "text encoder lora"))
                self.text.inject(partial(_peft_config, config))
        self.weights = _as_module(self._parameters())

    @property
    def all_targets(self) -> list[str]:
        """Modules of the network, then of the text encoders."""
        return [*self.targets, *(self.text.targets if self.text is not None else ())]

    def _layer(self, target: str) -> Any:
        if self.text is not None and is_text_target(target):
            return self.text.layer(target)
        return self.network.get_submodule(target)

    def _parameters(self) -> dict[str, nn.Parameter]:
        """The parameters, converted to float32: half precision would lose the small steps of training."""
        parameters = {}
        for target in self.all_targets:
            layer = self._layer(target)
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
        """Inside, the model computes as if it had no LoRA."""
        self._enable(False)
        try:
            yield
        finally:
            self._enable(True)

    def _enable(self, on: bool) -> None:
        if on:
            self.network.enable_adapters()
        else:
            self.network.disable_adapters()
        if self.text is not None:
            self.text.enable(on)

    def delta_weight(self, target: str) -> Tensor:
        """(alpha / rank) B A, the addition to the weight of one module."""
        a, b = (self.weights.get_parameter(f"{target}.lora_{matrix}.weight") for matrix in "AB")
        return self.config.scale * (b @ a)

    @torch.no_grad()
    def merge(self) -> None:
        """Add it to the network's weights and remove it: the same output at the speed of the bare model."""
        if is_quantized(self.network):
            raise UserError("a LoRA cannot be merged into quantised weights")
        deltas = {target: self.delta_weight(target) for target in self.all_targets}
        self.remove()
        for target, delta in deltas.items():
            weight = self._layer(target).weight
            weight.copy_((weight.float() + delta).to(weight.dtype))

    def remove(self) -> None:
        """Remove it: the model is bit for bit as it was before."""
        self.network.delete_adapters(NAME)
        self.network.unload_lora()
        if self.text is not None:
            self.text.remove()


def _text_lora(backbone: TextLoraTarget, targets: Sequence[str] | None) -> TextEncoderLora:
    networks = backbone.text_networks()
    if not networks:
        raise UserError("this model's text encoders cannot have a LoRA: only those of Stable Diffusion with a UNet can")
    return TextEncoderLora(networks, backbone.text_lora_targets() if targets is None else targets, NAME)


def _peft_config(config: LoraConfig, modules: list[str]) -> Any:
    from peft import LoraConfig as PeftConfig

    return PeftConfig(
        r=config.rank,
        lora_alpha=config.resolved_alpha,  # type: ignore[arg-type]  # peft divides it: a float will do
        target_modules=modules,
        init_lora_weights="gaussian",
    )


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
