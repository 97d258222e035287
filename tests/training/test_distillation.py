"""Distilled correction on tiny models: what the LoRA should predict, and that training teaches it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dpt.adapter.io import load_adapter
from dpt.backbone import Backbone, open_backbone
from dpt.backbone.mmdit import TransformerBackbone
from dpt.backbone.rng import SampleRNG
from dpt.cli.train.stages import main_stage2
from dpt.data.example import Batch, collate
from dpt.errors import UserError
from dpt.lora import Lora, LoraConfig
from dpt.lora.io import read_lora
from dpt.sampling.guidance import embed_guidance
from dpt.sampling.loop import denoise
from dpt.sampling.options import Correction, Guidance, Interval
from dpt.sampling.schedulers import make_scheduler
from dpt.sampling.self_correction import guided
from dpt.score.matching import Scorer
from dpt.training.engine import run_folder
from dpt.training.tasks.distillation import LEFT, LOSS, CorrectionDistillation, DistillationConfig
from tests.checkpoints.making import tiny_adapter, tiny_result
from tests.training import tiny_stage1
from tests.training.tiny_stage2 import FRAMING, TRANSFORMER_FEATURE, TRANSFORMER_FRAMING, loop, transformer

STEPS, SCALE = 4, 3.0
CORRECTION = Correction(0.05, "fused", "rms", Interval(0.0, 0.6))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"unet": tiny_stage1.model(root / "unet"), "transformer": transformer(root / "transformer")}


@pytest.fixture
def backbone(folders: dict[str, Path], request: pytest.FixtureRequest) -> Backbone:
    return open_backbone(folders[getattr(request, "param", "transformer")], device="cpu")


both_kinds = pytest.mark.parametrize("backbone", ["unet", "transformer"], indirect=True)


def task(backbone: Backbone, **changes: Any) -> CorrectionDistillation:
    feature = TRANSFORMER_FEATURE if isinstance(backbone, TransformerBackbone) else "up1"
    lora = Lora(backbone, LoraConfig(rank=2), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in lora.weights.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    config = DistillationConfig(CORRECTION, SCALE, timesteps=STEPS)
    return CorrectionDistillation(backbone, tiny_adapter(backbone, feature), lora, config, **changes)


def framing_of(backbone: Backbone) -> Any:
    return TRANSFORMER_FRAMING if isinstance(backbone, TransformerBackbone) else FRAMING


def batch_for(backbone: Backbone, count: int = 2) -> Batch:
    stream = tiny_stage1.stream(framing=framing_of(backbone))
    return collate([stream[position] for position in range(count)])


def losses(built: CorrectionDistillation, batch: Batch) -> dict[str, torch.Tensor]:
    return built.losses(batch, SampleRNG(1, range(len(batch))), torch.tensor(1.0))


def conditions(built: CorrectionDistillation, batch: Batch) -> Any:
    assert batch.captions is not None
    texts = built.backbone.encode_text(batch.captions), built.backbone.encode_text([""] * len(batch))
    return embed_guidance(built.backbone, *texts, Guidance(SCALE))


@both_kinds
def test_predictions_with_the_shift_sample_the_corrected_images_without_a_correction(backbone: Backbone) -> None:
    built = task(backbone)
    text, negative, guidance = conditions(built, batch_for(backbone))
    steps = built._sample(text, negative, guidance, SampleRNG(1, range(2)))
    assert len(steps) == STEPS and steps[0].shift.any() and not steps[-1].shift.any()
    shape = (backbone.latent_channels, *backbone.default_latent_size)
    noise = SampleRNG(1, range(2)).normal(shape, "teacher noise")
    denoiser, hooks = guided(backbone, text, negative, guidance, CORRECTION, Scorer(backbone, built.adapter))
    scheduler = make_scheduler("ddim", backbone.scheduler_config)
    corrected = denoise(denoiser, scheduler, noise, STEPS, hooks=hooks)
    shifted = iter(steps)

    def predicted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        step = next(shifted)
        torch.testing.assert_close(x, step.x, rtol=1e-4, atol=1e-4)
        return step.prediction + step.shift

    uncorrected = denoise(predicted, make_scheduler("ddim", backbone.scheduler_config), noise, STEPS)
    torch.testing.assert_close(uncorrected, corrected, rtol=1e-4, atol=1e-4)


@both_kinds
def test_before_training_all_of_the_correction_is_left(backbone: Backbone) -> None:
    first = losses(task(backbone), batch_for(backbone))
    assert first[LEFT] == pytest.approx(1, abs=1e-3) and first[LOSS] > 0


def test_training_lowers_the_loss_and_leaves_adapter_and_teacher_as_they_were(
    tmp_path: Path, backbone: Backbone
) -> None:
    built, batch = task(backbone), batch_for(backbone)
    teacher = {name: tensor.clone() for name, tensor in built.teacher.items()}
    adapter = {name: tensor.clone() for name, tensor in built.adapter.state_dict().items()}
    before = losses(built, batch)
    optimizer = torch.optim.Adam(built.lora.weights.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        losses(built, batch)[LOSS].backward()
        optimizer.step()
    assert losses(built, batch)[LEFT] < 0.9 * before[LEFT]
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in built.teacher.items())
    built.export(tmp_path, "some/model")
    saved = load_adapter(tmp_path / "adapter")[0].state_dict()
    assert all(torch.equal(tensor, adapter[name]) for name, tensor in saved.items())
    tuned = read_lora(tmp_path / "lora").tensors
    assert any(not torch.equal(tensor, teacher[name]) for name, tensor in tuned.items())


def test_loss_is_weighted_by_example(backbone: Backbone) -> None:
    built, batch = task(backbone), batch_for(backbone)
    single = [losses(built, replace(batch, weights=torch.tensor(w)))[LOSS].item() for w in ([2.0, 0.0], [0.0, 2.0])]
    assert sum(single) / 2 == pytest.approx(losses(built, batch)[LOSS].item(), rel=1e-5)


def test_resume_after_stop_is_bit_for_bit(tmp_path: Path, folders: dict[str, Path]) -> None:
    def begin(root: Path) -> Any:
        opened = open_backbone(folders["transformer"], device="cpu")
        return loop(root, task(opened), framing=TRANSFORMER_FRAMING, max_train_steps=4)

    assert begin(tmp_path / "whole").run().finished
    run = begin(tmp_path / "cut")
    take_step_before: Callable[[Any], None] = run.take_step

    def take_step(micro_batches: Any) -> None:
        take_step_before(micro_batches)
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    run.take_step = take_step
    assert run.run().step == 2
    assert begin(tmp_path / "cut").run().finished
    whole, cut = (run_folder.load(tmp_path / label / "checkpoint-4")[0] for label in ("whole", "cut"))
    for group, tensors in whole.items():
        assert all(torch.equal(tensor, cut[group][key]) for key, tensor in tensors.items()), group


def test_command_continues_the_lora_of_a_finished_run(
    tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_backbone(folders["unet"], device="cpu")
    finished = tiny_result(opened, tmp_path / "finished")
    model = [
        "--pretrained_model_name_or_path",
        str(folders["unet"]),
        "--output_dir",
        str(tmp_path),
        "--run_name",
        "out",
    ]
    words = [*model, "--max_train_steps", "1", "--train_batch_size", "1", "--validation_steps", "0"]
    distill = [*words, "--distill_timesteps", "2", "--distill_correction"]
    assert main_stage2([*distill, str(finished)]) == 2
    assert "recommends no correction: give --distill_factor, such as 0.02" in capsys.readouterr().err
    assert main_stage2([*distill, str(finished / "lora"), "--distill_factor", "0.05"]) == 2
    assert "has no adapter" in capsys.readouterr().err
    assert main_stage2([*distill, str(finished), "--distill_factor", "0.05", "--lora_rank", "8"]) == 0
    assert "--lora_rank has no effect" in capsys.readouterr().err
    before, after = (read_lora(folder / "lora").tensors for folder in (finished, tmp_path / "out"))
    assert before.keys() == after.keys() and any(not torch.equal(after[name], before[name]) for name in before)
    assert load_adapter(tmp_path / "out/adapter")[0].config == load_adapter(finished / "adapter")[0].config


def test_what_cannot_be_distilled_is_refused() -> None:
    with pytest.raises(UserError, match="the target fused"):
        DistillationConfig(Correction(0.05, "state"), SCALE)
    with pytest.raises(UserError, match="at least 2 sampling steps"):
        DistillationConfig(CORRECTION, SCALE, timesteps=1)
