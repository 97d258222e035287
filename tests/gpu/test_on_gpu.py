"""What only a GPU can show: half formats, compilation, other kernels and streams against float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpt.backbone import open_backbone
from dpt.backbone.device import apply_speedups
from dpt.backbone.rng import SampleRNG
from dpt.cli.train.setup import use_xformers
from dpt.data.example import Batch
from dpt.lora import LoraConfig
from dpt.sampling.draw import Request, SamplingSettings, draw
from dpt.training.engine.optim import LossScaler, Update
from tests import tiny_models, tiny_sdxl
from tests.lora.test_injection import filled
from tests.training import tiny_stage1, tiny_stage2
from tests.training.toy import settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

FORMATS = [("float16", 0.99), ("bfloat16", 0.95)]


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl.save(tiny_sdxl.sdxl(), tmp_path_factory.mktemp("sdxl") / "model")


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tiny_models.SD1, tmp_path_factory.mktemp("sd") / "model")


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("pocket"))


def score_gradient(backbone: Any) -> Tensor:
    """The gradient of a feature's sum with respect to the latents, on the CPU."""
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(backbone.device).requires_grad_()
    text = backbone.encode_text(["a red circle", "two green stars"])
    t = torch.tensor([100, 700], device=backbone.device)
    feature, _ = backbone.features(z, t, text, backbone.default_feature)
    (gradient,) = torch.autograd.grad(feature.float().square().mean(), z)
    return gradient.double().cpu().flatten()


def cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first, second, dim=0))


@pytest.mark.parametrize(("dtype", "least"), FORMATS)
def test_gradients_to_the_latents_agree_with_float32(dtype: str, least: float, sd: Path, sdxl: Path) -> None:
    for folder in (sd, sdxl):
        exact = score_gradient(open_backbone(folder, device="cpu", dtype="float32"))
        backbone = open_backbone(folder, device="cuda", dtype=dtype)
        backbone.prepare_for_gradients()
        assert cosine(score_gradient(backbone), exact) > least


@pytest.mark.parametrize(("dtype", "least"), FORMATS)
def test_gradients_to_the_loras_of_unet_and_text_encoders_agree_with_float32(
    dtype: str, least: float, sdxl: Path
) -> None:
    def gradients(device: str, dtype: str) -> dict[str, Tensor]:
        backbone = open_backbone(sdxl, device=device, dtype=dtype)
        lora = filled(backbone, LoraConfig(rank=2, text_encoders=True))
        z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(backbone.device)
        scale = float(LossScaler("cpu").scale) if dtype == "float16" else 1.0
        output = backbone.predict(z, 500, backbone.encode_text(["a red circle"]))
        (scale * output.float().square().mean()).backward()
        found: dict[str, list[Tensor]] = {}
        for name, p in lora.weights.named_parameters():
            assert p.dtype == torch.float32 and p.grad is not None
            part = name.split(".")[0] if name.startswith("text_encoder") else "unet"
            found.setdefault(part, []).append((p.grad.double() / scale).cpu().flatten())
        return {part: torch.cat(own) for part, own in found.items()}

    exact, half = gradients("cpu", "float32"), gradients("cuda", dtype)
    assert set(exact) == {"unet", "text_encoder", "text_encoder_2"}
    assert all(cosine(half[part], exact[part]) > least for part in exact)


def test_the_loss_scale_adapts_without_a_word_to_the_host() -> None:
    scaler = LossScaler(torch.device("cuda"), growth_interval=2)
    begin = float(scaler.scale)
    fine, overflow, no = (torch.tensor(v, device="cuda") for v in (1.0, float("inf"), False))
    torch.cuda.set_sync_debug_mode("error")
    try:
        scaler.update(overflow, no)
        for _ in range(4):
            scaler.update(fine, no)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(scaler.scale) == begin / 2 * 4


def gradient_of_a_step(task: Any, batch: Batch) -> Tensor:
    num_boxes = torch.tensor(float(max(task.count(batch), 1)), device=task.backbone.device)
    losses = task.losses(batch.to(task.backbone.device), SampleRNG(0, range(len(batch))), num_boxes)
    total: Any = sum(weight * losses[name] for name, weight in task.weights.items())
    total.backward()
    found = [p.grad.double().cpu().flatten() for p in task.trained.parameters() if p.grad is not None]
    return torch.cat(found)


def stage2(folder: Path, device: str = "cuda") -> Any:
    backbone = open_backbone(folder, device=device, dtype="float32")
    backbone.prepare_for_gradients()
    task = tiny_stage2.task(backbone)
    task.trained.to(backbone.device)
    return task


def test_a_step_of_stage_2_equals_that_of_the_cpu(pocket: Path) -> None:
    task = stage2(pocket)
    (batch,) = tiny_stage1.stream(0).batches([range(2)])
    exact = gradient_of_a_step(stage2(pocket, "cpu"), batch)
    assert cosine(gradient_of_a_step(task, batch), exact) > 0.999


def test_a_second_stream_gives_the_same_gradients(pocket: Path) -> None:
    (batch,) = tiny_stage1.stream(0).batches([range(2)])
    usual = gradient_of_a_step(stage2(pocket), batch)
    side = torch.cuda.Stream()
    task = stage2(pocket)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        beside = gradient_of_a_step(task, batch)
    torch.cuda.current_stream().wait_stream(side)
    torch.testing.assert_close(beside, usual, rtol=1e-3, atol=1e-5)


def test_two_streams_sample_two_images_at_once(sdxl: Path) -> None:
    backbone = open_backbone(sdxl, device="cuda", dtype="float32")
    requests = [Request("a red circle", 0, index) for index in range(2)]
    sample = SamplingSettings(3, 4.0)
    usual = [next(draw(backbone, [request], sample)) for request in requests]
    streams = [torch.cuda.Stream() for _ in requests]
    torch.cuda.synchronize()
    images = []
    for request, stream in zip(requests, streams, strict=True):
        with torch.cuda.stream(stream):
            images.append(next(draw(backbone, [request], sample)))
    for expected, image in zip(usual, images, strict=True):
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_compiled_blocks_compute_the_same(model: str, request: pytest.FixtureRequest) -> None:
    backbone = open_backbone(request.getfixturevalue(model), device="cuda", dtype="float32")
    before = score_gradient(backbone)
    (sentence,) = apply_speedups(backbone, compiled=True)
    assert sentence.startswith("compile: ")
    assert cosine(score_gradient(backbone), before) > 0.9999


def test_channels_last_and_tf32_change_rounding_only(sd: Path) -> None:
    backbone = open_backbone(sd, device="cuda", dtype="float32")
    before = score_gradient(backbone)
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        apply_speedups(backbone, channels_last=True, tf32=True)
        assert cosine(score_gradient(backbone), before) > 0.999
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


@pytest.mark.skipif(find_spec("xformers") is None, reason="xformers is not installed")
def test_attention_of_xformers_computes_the_same(sdxl: Path) -> None:
    backbone = open_backbone(sdxl, device="cuda", dtype="float16")
    before = score_gradient(backbone)
    use_xformers(backbone)
    assert cosine(score_gradient(backbone), before) > 0.99


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_eight_bit_adam_follows_adam(pocket: Path) -> None:
    (batch,) = tiny_stage1.stream(0).batches([range(2)])
    moved = {}
    for eight_bit in (False, True):
        task = stage2(pocket)
        before = torch.cat([p.detach().double().cpu().flatten() for p in task.trained.parameters()])
        update = Update(task.parameter_groups(), settings(use_8bit_adam=eight_bit, learning_rate=1e-3))
        for _ in range(3):
            gradient_of_a_step(task, batch)
            update.adam.step()
            update.adam.zero_grad()
        after = torch.cat([p.detach().double().cpu().flatten() for p in task.trained.parameters()])
        moved[eight_bit] = after - before
    assert cosine(moved[True], moved[False]) > 0.95


def same_on_both_devices(open_: Callable[[str], Any]) -> None:
    images = [
        next(draw(open_(device), [Request("a red circle", 0, 0)], SamplingSettings(4, 4.0)))
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-3)


def test_an_image_does_not_depend_on_the_device(sd: Path, sdxl: Path) -> None:
    for folder in (sd, sdxl):
        same_on_both_devices(lambda device, folder=folder: open_backbone(folder, device=device, dtype="float32"))  # type: ignore[misc]
