"""Frozen weights in 4 or 8 bits: the linear layers in the blocks of the denoising network, a LoRA beside them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Literal

from torch import nn

from dpt.backbone.device import block_classes
from dpt.errors import UserError

Quantization = Literal["nf4", "int8"]

LIBRARIES: dict[Quantization, str] = {"nf4": "bitsandbytes", "int8": "torchao"}


def quantize_blocks(network: Any, kind: Quantization) -> Any:
    """Quantise the linear layers of a network's repeated blocks, which hold nearly all of its weights.

    nf4 takes effect when the network is moved to its device; int8 is a scale for each output channel.
    """
    library = _library(kind)
    layers = list(_linears_in_blocks(network))
    if not layers:
        raise UserError(f"--quantize {kind} finds no linear layers in the blocks of this model: leave the flag out")
    if kind == "int8":
        chosen = {layer for _, _, layer in layers}
        library.quantize_(network, library.Int8WeightOnlyConfig(), lambda module, _: module in chosen)
        return network
    for parent, name, layer in layers:
        setattr(parent, name, _four_bit(library, layer))
    return network


def is_quantized(network: Any) -> bool:
    kinds = {type(layer.weight).__name__ for _, _, layer in _linears_in_blocks(network)}
    return not kinds <= {"Parameter", "Tensor"}


def _library(kind: Quantization) -> Any:
    name = LIBRARIES[kind]
    try:
        if kind == "int8":
            return importlib.import_module("torchao.quantization")
        return importlib.import_module("bitsandbytes")
    except Exception as error:  # a broken installation fails in its own ways
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--quantize {kind} needs {name}, which cannot be imported ({why}): pip install {name}"
        ) from None


def _linears_in_blocks(network: Any) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Each linear layer with the module and the name that hold it; layers of a LoRA are left out."""
    kinds = block_classes(network)
    for block in network.modules():
        if type(block).__name__ not in kinds:
            continue
        for parent in block.modules():
            for name, layer in parent.named_children():
                if isinstance(layer, nn.Linear) and not isinstance(parent, nn.ModuleDict):
                    yield parent, name, layer


def _four_bit(library: Any, layer: nn.Linear) -> nn.Module:
    quantized = library.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    quantized.weight = library.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    quantized.bias = layer.bias
    return quantized
