"""Frozen weights in 4 and 8 bits. The libraries are stood in for where they are not installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpt.backbone import Backbone, open_backbone, quantization
from dpt.backbone.quantization import is_quantized
from dpt.errors import UserError
from dpt.lora import LoraConfig
from tests import tiny_models, tiny_transformers
from tests.lora.test_injection import filled

LEVELS = 15


class Params4bit(nn.Parameter):
    """Rounded to a few levels, as the real one is."""

    def __new__(cls, data: Tensor, requires_grad: bool = False, quant_type: str = "") -> Params4bit:
        assert quant_type == "nf4"
        step = data.abs().amax() / LEVELS
        rounded: Params4bit = torch.Tensor._make_subclass(cls, (data / step).round() * step, requires_grad)
        return rounded


class Linear4bit(nn.Linear):
    def __init__(self, width: int, height: int, bias: bool, compute_dtype: Any, quant_type: str, device: str) -> None:
        super().__init__(width, height, bias, device=device)


class Int8Parameter(Params4bit):
    pass


def quantize_(network: nn.Module, config: object, chosen: Any) -> None:
    for name, module in network.named_modules():
        if chosen(module, name):
            module.weight = Int8Parameter(module.weight.data, quant_type="nf4")


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {
        "nf4": SimpleNamespace(nn=SimpleNamespace(Linear4bit=Linear4bit, Params4bit=Params4bit)),
        "int8": SimpleNamespace(quantize_=quantize_, Int8WeightOnlyConfig=SimpleNamespace),
    }
    monkeypatch.setattr(quantization, "_library", libraries.__getitem__)


@pytest.fixture(scope="module", params=["unet", "transformer"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "unet":
        return tiny_models.save(tiny_models.SD1, path)
    return tiny_transformers.save(tiny_transformers.sd3(), path)


def prediction(backbone: Backbone) -> Tensor:
    shape = (2, backbone.latent_channels, *backbone.default_latent_size)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return backbone.predict(z, 500, backbone.encode_text([tiny_models.PROMPT] * 2))


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_blocks_are_rounded_and_a_lora_beside_them_learns(folder: Path, kind: Any) -> None:
    exact, rounded = open_backbone(folder, device="cpu"), open_backbone(folder, device="cpu", quantize=kind)
    assert is_quantized(rounded.network) and not is_quantized(exact.network)
    assert rounded.is_model(exact.model_hash), "a LoRA of the one is a LoRA of the other"
    a, b = prediction(exact), prediction(rounded)
    assert 0 < float((a - b).norm() / a.norm()) < 0.3
    lora = filled(rounded, LoraConfig(rank=2))
    assert is_quantized(rounded.network)
    prediction(rounded).square().mean().backward()
    learning = [p.grad is not None and bool(p.grad.any()) for p in lora.weights.parameters()]
    assert sum(learning) > 0.8 * len(learning), "the last block of a transformer reads no text any more"
    with pytest.raises(UserError, match="cannot be merged into quantised weights"):
        lora.merge()
    lora.remove()
    torch.testing.assert_close(prediction(rounded), b, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "library"), [("nf4", "bitsandbytes"), ("int8", "torchao")])
def test_a_missing_library_is_named(folder: Path, kind: Any, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization" if kind == "int8" else library, None)
    with pytest.raises(UserError, match=f"--quantize {kind} needs {library}, which cannot be imported"):
        open_backbone(folder, device="cpu", quantize=kind)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "library", "error"), [("nf4", "bitsandbytes", 0.2), ("int8", "torchao", 0.03)])
def test_the_libraries_themselves(folder: Path, kind: Any, library: str, error: float) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    exact, rounded = open_backbone(folder, device="cpu"), open_backbone(folder, device="cpu", quantize=kind)
    a, b = prediction(exact), prediction(rounded)
    assert is_quantized(rounded.network) and 0 < float((a - b).norm() / a.norm()) < error
