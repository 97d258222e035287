"""HPS tuning on the training loop: what it learns, leaves alone and exports, on a flow matching model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dpt.backbone import Backbone, open_backbone
from dpt.backbone.rng import SampleRNG
from tests.training import tiny_hps, two_processes
from tests.training.tiny_hps import loop, losses, task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hps.model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return open_backbone(folder, device="cpu")


def test_the_loss_of_one_batch_falls_and_only_the_lora_changes(
    backbone: Backbone, folder: Path, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    built = task(backbone)
    run = loop(tmp_path, folder, built)
    (batch,) = run.stream.batches([[0, 1, 2, 3]])
    optimizer = torch.optim.AdamW(built.lora.weights.parameters(), lr=1e-2)
    course = []
    for _ in range(8):
        loss = built.losses(batch, SampleRNG(0, [0, 1, 2, 3]), torch.tensor(1.0))["mse"]
        course.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert course[-1] < course[0]
    after = {name.replace(".base_layer", ""): value for name, value in backbone.network.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    built.export(tmp_path / "out", "tiny")
    assert json.loads((tmp_path / "out/generation_defaults.json").read_text()) == {"negative_prompt": "Weird image. "}


def test_a_resumed_run_equals_the_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    def run(root: Path, steps: int) -> dict[str, torch.Tensor]:
        built = task(open_backbone(folder, device="cpu"))
        loop(root, folder, built, max_train_steps=steps, checkpointing_steps=2).run()
        return built.lora.state()

    whole = run(tmp_path / "whole", 5)
    run(tmp_path / "cut", 2)
    rest = run(tmp_path / "cut", 5)
    assert all(torch.equal(tensor, rest[name]) for name, tensor in whole.items())
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


@pytest.mark.nightly
def test_two_processes_equal_one_with_twice_the_batch(folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    two_processes.run("tests.training.tiny_hps", folder, tmp_path / "two")
    loop(tmp_path / "one", folder, task(backbone), train_batch_size=2).run()
    two_processes.assert_same(tmp_path / "one", tmp_path / "two", losses, step=6)
