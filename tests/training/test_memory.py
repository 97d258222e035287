"""The memory estimate that a run prints before its first step, against the measured peak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timing
import torch

from dpt.backbone import open_backbone
from dpt.backbone.rng import SampleRNG
from dpt.data.example import collate
from dpt.data.images import Framing
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import POCKET_WORLD
from tests import tiny_sdxl
from tests.training import tiny_stage1, tiny_stage2

EXAMPLES = 8
TASKS: dict[str, Callable[..., Any]] = {
    "stage1": tiny_stage1.task,
    "stage2": tiny_stage2.task,
    "plain_lora": tiny_stage2.control,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With latents as large as its text is long, as in the true model: 16 x 16."""
    pipe = tiny_sdxl.sdxl(side=16)
    return tiny_sdxl.save(pipe, tmp_path_factory.mktemp("sdxl") / "model")


def build_task(name: str, folder: Path, **changes: Any) -> Any:
    backbone = open_backbone(folder, device="cpu")
    if name != "stage1":
        backbone.prepare_for_gradients()
    task = TASKS[name](backbone, **changes)
    task.trained.train()
    return task


@pytest.mark.parametrize("name", TASKS)
def test_estimate_is_within_a_quarter_of_the_measured_peak(name: str, folder: Path) -> None:
    compare(build_task(name, folder))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_estimate_of_a_lora_of_sdxl_is_within_a_quarter_of_the_measured_peak(checkpointing: bool, sdxl: Path) -> None:
    compare(build_task("plain_lora", sdxl, gradient_checkpointing=checkpointing))


def compare(task: Any) -> None:
    side = task.backbone.default_image_size[0]
    source = SceneSource(POCKET_WORLD, 0, "train", Framing.for_model(task.backbone, side))
    batch = collate([source.example(position, parts=task.parts) for position in range(EXAMPLES)])

    def step() -> None:
        losses = task.losses(batch, SampleRNG(1, range(EXAMPLES)), torch.tensor(3.0))
        torch.stack(
            [task.weights[key] * value for key, value in losses.items() if key in task.weights]
        ).sum().backward()
        for p in task.trained.parameters():
            p.grad = None

    step()
    estimate = {name: size for name, size in task.memory(EXAMPLES).items() if name != "frozen model"}
    measured = timing.peak_bytes(step, torch.device("cpu"))
    assert 0.75 < sum(estimate.values()) / measured < 1.25, (estimate, measured)


@pytest.mark.parametrize("name", TASKS)
def test_estimate_grows_with_the_batch_and_shrinks_with_gradient_checkpointing(name: str, folder: Path) -> None:
    task = build_task(name, folder)
    estimates = task.memory(1), task.memory(8)
    single, eight = (sum(parts.values()) - estimates[0]["frozen model"] for parts in estimates)
    assert 4 * single < eight <= 8 * single
    if name != "stage1":  # whose frozen model saves nothing
        assert sum(build_task(name, folder, gradient_checkpointing=True).memory(8).values()) < eight
