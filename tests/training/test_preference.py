"""The preference classifier on the training loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dpt.backbone.rng import SampleRNG
from dpt.data.preference.records import read_preferences, split_records
from dpt.data.preference.source import PreferenceStream
from dpt.distributed import Processes
from dpt.errors import BrokenImageError, UserError
from dpt.score.preference import PreferenceModel, open_preference_model
from dpt.training.engine.loop import Loop, run_task
from dpt.training.engine.run_folder import RunConfig
from dpt.training.engine.settings import TrainSettings
from dpt.training.tasks.preference import PreferenceTask, UnlockedBlocks
from tests.evaluation import tiny_vision
from tests.preference_folder import write_preferences

ALL = UnlockedBlocks(-1, -1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.clip(tmp_path_factory.mktemp("clip"))


def opened(clip: Path) -> PreferenceModel:
    return open_preference_model(str(clip), device="cpu")


def stream_of(file: Path, model: PreferenceModel, records: Any = None, **options: Any) -> PreferenceStream:
    rows = read_preferences(file) if records is None else records
    return PreferenceStream(rows, file.parent / "preference_images", model.inputs, 0, **options)


def trained(clip: Path, file: Path, root: Path, steps: int, batch: int = 4, **options: Any) -> PreferenceModel:
    model = opened(clip)
    settings = TrainSettings(steps, batch, learning_rate=3e-3, adam_weight_decay=0, checkpointing_steps=2, **options)
    run_task(PreferenceTask(model, blocks=ALL), stream_of(file, model), settings, root, RunConfig({"task": "test"}))
    return model


def accuracy(model: PreferenceModel, stream: PreferenceStream) -> dict[str, float]:
    tally = PreferenceTask(model, stream, ALL).validate(0, 1, lambda n: None)
    return {name: total / count for name, (total, count) in tally.items()}


@pytest.mark.slow
def test_hidden_preference_is_learned_and_generalises_to_other_users_and_prompts(clip: Path, tmp_path: Path) -> None:
    file = write_preferences(tmp_path, 60, sizes=(3, 4))
    split = split_records(read_preferences(file), 0.4)
    model = opened(clip)
    held_out = stream_of(file, model, split.test, shuffle=False)
    before = accuracy(model, held_out)
    settings = TrainSettings(40, 6, learning_rate=3e-3, adam_weight_decay=0, validation_steps=0)
    task = PreferenceTask(model, held_out, ALL)
    run_task(task, stream_of(file, model, split.train), settings, tmp_path / "run", RunConfig({"task": "test"}))
    after = accuracy(model, held_out)
    assert after["top1_chance"] == before["top1_chance"] == pytest.approx(0.29, abs=0.03)
    assert after["top1"] >= after["top1_chance"] + 0.15 and after["top1"] > before["top1"]
    assert after["pairwise"] > 0.65 and after["pairwise_chance"] == 0.5
    (folder,) = task.export(tmp_path / "run", "a CLIP")
    reopened = open_preference_model(str(folder), device="cpu")
    assert accuracy(reopened, held_out) == after


def test_resumed_run_equals_the_uninterrupted_one(clip: Path, tmp_path: Path) -> None:
    file = write_preferences(tmp_path, 8, sizes=(2, 3))
    whole = trained(clip, file, tmp_path / "whole", 4, batch=2)
    trained(clip, file, tmp_path / "cut", 2, batch=2)
    rest = trained(clip, file, tmp_path / "cut", 4, batch=2)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, rest.state_dict()[name]), name


def test_two_processes_have_the_gradient_of_one_with_twice_the_batch(clip: Path, tmp_path: Path) -> None:
    file = write_preferences(tmp_path, 8, sizes=(2, 4, 3))

    def gradient(batch: int, rank: int, count: int) -> torch.Tensor:
        model = opened(clip)
        task, stream = PreferenceTask(model, blocks=ALL), stream_of(file, model)
        settings = TrainSettings(1, batch)
        loop = Loop(task, stream, settings, tmp_path / "x", RunConfig({}), Processes(rank, count))
        (positions,) = [loop.plan.positions(0, 0)]
        (data,) = stream.batches([positions])
        task.losses(data, SampleRNG(0, positions), torch.tensor(1.0))["listwise"].backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    halves = gradient(3, 0, 2), gradient(3, 1, 2)
    torch.testing.assert_close(sum(halves) / 2, gradient(6, 0, 1), atol=1e-5, rtol=1e-4)


def test_only_the_last_blocks_are_trained_without_decay_on_norms_and_the_scale_is_limited(clip: Path) -> None:
    model = opened(clip)
    groups = PreferenceTask(model, blocks=UnlockedBlocks(1, 0)).parameter_groups()
    names = {name for group in groups for name in group.named}
    assert {name.split(".")[4] for name in names if ".layers." in name} == {"1"}
    assert not any("text_model.encoder" in name or "embeddings" in name for name in names)
    assert {"clip.visual_projection.weight", "clip.text_projection.weight", "clip.logit_scale"} <= names
    assert all(p.ndim > 1 for group in groups if group.decays for p in group.named.values())
    assert groups[-1].limits == (0, math.log(100)) and list(groups[-1].named) == ["clip.logit_scale"]
    with pytest.raises(UserError, match="there are 2 blocks in a tower, too few to train the last 3"):
        PreferenceTask(model, blocks=UnlockedBlocks(3, 0))


def test_logit_scale_stays_below_100_and_can_decrease_again(clip: Path, tmp_path: Path) -> None:
    file = write_preferences(tmp_path, 4)
    model = opened(clip)
    with torch.no_grad():
        model.clip.logit_scale.fill_(7.0)
    settings = TrainSettings(1, 2, learning_rate=1e-3, validation_steps=0)
    run_task(PreferenceTask(model, blocks=ALL), stream_of(file, model), settings, tmp_path / "r", RunConfig({}))
    assert float(model.logit_scale) == pytest.approx(100, rel=1e-4)
    assert model.clip.logit_scale.requires_grad


def test_broken_image_is_replaced_within_the_budget_or_an_error(clip: Path, tmp_path: Path) -> None:
    file = write_preferences(tmp_path, 6)
    (tmp_path / "preference_images/2_1.png").write_bytes(b"\x89PNG broken")
    model = opened(clip)
    with pytest.raises(BrokenImageError, match=r"2_1\.png"):
        list(map(stream_of(file, model).__getitem__, range(6)))
    with pytest.warns(UserWarning, match=r"2_1\.png cannot be used.*1 of 1 allowed"):
        (batch,) = stream_of(file, model, corrupt_budget=1).batches([range(6)])
    assert len(batch) == 6 and len(set(batch.skipped)) == 1
