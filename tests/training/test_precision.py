"""Gradients of stage 2 through a half-precision model agree with those in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpt.backbone.folder import ModelFolder
from dpt.backbone.rng import SampleRNG
from dpt.backbone.unet import UNetBackbone
from dpt.data.example import Batch
from dpt.training.engine.optim import LossScaler
from tests.training import tiny_stage1
from tests.training.tiny_stage2 import task

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def batch() -> Batch:
    (first,) = tiny_stage1.stream(0).batches([range(4)])
    return first


def lora_gradient(folder: Path, batch: Batch, device: str, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """The gradient of the total loss into every LoRA weight, as one float64 vector on the CPU."""
    backbone = UNetBackbone.load(ModelFolder.check(folder), torch.device(device), dtype)
    stage2 = task(backbone)
    stage2.trained.to(device)
    num_boxes = torch.tensor(float(max(stage2.count(batch), 1)), device=device)
    losses = stage2.losses(batch.to(device), SampleRNG(0, range(len(batch))), num_boxes)
    total = sum(weight * losses[name] for name, weight in stage2.weights.items())
    assert isinstance(total, Tensor)
    (total * scale).backward()
    gradients = [p.grad.flatten() for p in stage2.lora.weights.parameters() if p.grad is not None]
    return torch.cat(gradients).double().cpu() / scale


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])])
def test_bfloat16_gradients_agree_with_float32(folder: Path, batch: Batch, device: str) -> None:
    exact = lora_gradient(folder, batch, device, torch.float32)
    assert cosine(lora_gradient(folder, batch, device, torch.bfloat16), exact) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])])
def test_float16_gradients_need_the_loss_scale(folder: Path, batch: Batch, device: str) -> None:
    """Without it 71 % of them are zero at SD's size; here the loss is shrunk until some are."""
    exact = lora_gradient(folder, batch, device, torch.float32)
    start = float(LossScaler(torch.device(device)).scale)
    scaled = lora_gradient(folder, batch, device, torch.float16, start)
    shrunk = lora_gradient(folder, batch, device, torch.float16, 2.0**-12)
    assert torch.isfinite(scaled).all()
    assert cosine(scaled, exact) > 0.99
    assert (shrunk == 0).double().mean() > (scaled == 0).double().mean()
    assert cosine(shrunk, exact) < cosine(scaled, exact)
