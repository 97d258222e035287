"""A LoRA in CLIP text encoders, whose modules are named `COMPONENT.encoder.layers.N.self_attn.PROJECTION`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from dpt.errors import UserError

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
