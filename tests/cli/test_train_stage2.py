"""`train_stage2.py`: its flags, and whole runs on a tiny model with their initial weights and results."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from dpt.adapter.io import load_adapter
from dpt.checkpoints.open import training_views
from dpt.cli.common.console import flag_names
from dpt.cli.train import stages as train_stage1
from dpt.cli.train.stages import Stage2Options, main_stage2
from dpt.lora.io import read_lora
from dpt.training.engine import run_folder
from dpt.training.tasks.discriminative import GROUNDING_LOSSES, MATCHING_LOSSES
from tests import tiny_models
from tests.cli import test_train
from tests.cli.test_train import LAUNCHES, PUBLISHED, SMALL
from tests.evaluation import tiny_vision
from tests.training import tiny_stage1

ROOT = Path(__file__).parents[2]
SHORT = shlex.split(
    "--unet_feature up0 --train_batch_size 2 --val_batch_size 4 --validation_scenes 4 --logging_steps 1 --lora_rank 2 "
    "--max_train_steps 2"
)
PROMPTS = ROOT / "data/sample/coco/annotations_processed_v1/five_category.json"
OF_STAGE_2 = {
    "lora_rank", "qformer_ckpt", "only_train_lora", "mse_loss_coef", "detach_unet_feature", "prompts_path_val",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def first(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of stage 1 whose adapter is smaller than the default."""
    root = tmp_path_factory.mktemp("first")
    words = ["--pretrained_model_name_or_path", str(model), *SMALL, "--output_dir", str(root), "--dropout", "0"]
    assert train_stage1.main_stage1(words) == 0
    return root


@pytest.fixture
def command(model: Path, first: Path, tmp_path: Path) -> list[str]:
    where = ["--pretrained_model_name_or_path", str(model), "--output_dir", str(tmp_path / "logs")]
    return [*where, *SHORT, "--qformer_ckpt", str(first)]


refused = partial(test_train.refused, command=main_stage2)


def test_every_published_flag_is_accepted_or_named_with_a_reason() -> None:
    known, published = flag_names(Stage2Options), Stage2Options.published
    assert len(PUBLISHED | OF_STAGE_2) == 99
    assert known | set(published.refused) | set(published.ignored) >= PUBLISHED | OF_STAGE_2


def test_stage_2_continues_with_the_adapter_of_stage_1_of_any_shape(
    command: list[str], first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--learning_rate", "1e-12", "--validation_steps", "2", "--num_validation_images", "1"]
    assert main_stage2([*command, *words, "--validation_prompts", "a red circle", "a star"]) == 0
    output = capsys.readouterr().out
    logs = tmp_path / "logs"
    assert f"the adapter is in {logs / 'adapter'} and the lora is in {logs / 'lora'}" in output
    before, after = load_adapter(first / "adapter")[0], load_adapter(logs / "adapter")[0]
    assert before.config == after.config
    for name, value in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], value, rtol=0, atol=1e-9)
    stored = read_lora(logs / "lora")
    assert stored.record.config.rank == 2 and stored.record.base_hash
    assert (logs / "samples.png").exists() and (logs / "curve.png").exists()
    (validation,) = [v["validation"] for v in map(json.loads, (logs / "log.jsonl").read_text().splitlines())
                     if "validation" in v]  # fmt: skip
    assert validation.keys() == {
        "itm_txt",
        "itm_img",
        "itm_overall",
        "rec_p1",
        "mse",
        "loss",
        *MATCHING_LOSSES,
        *GROUNDING_LOSSES,
    }


@pytest.mark.parametrize("launch", LAUNCHES)
def test_published_command_runs(
    launch: Callable[[str, list[str]], str], model: Path, first: Path, tmp_path: Path
) -> None:
    flags = f"""
        --pretrained_model_name_or_path={model} --unet_feature=up0 --run_name=tune --output_dir={tmp_path}
        --train_batch_size=1 --gradient_accumulation_steps=2 --gradient_checkpointing --max_train_steps=2
        --learning_rate=1e-04 --max_grad_norm=1 --lr_scheduler=cosine --lr_warmup_steps=0 --mixed_precision=fp16
        --center_crop --random_flip --enable_xformers_memory_efficient_attention --checkpointing_steps=2
        --validation_scenes=4 --qformer_ckpt={first} --lora_rank=4
    """.split()
    launch("train_stage2", flags)
    assert (tmp_path / "tune" / "lora" / "lora.safetensors").exists()
    earlier = training_views(first)
    assert earlier and training_views(tmp_path / "tune" / "lora") == 2 * 2 + earlier


def test_alignment_is_measured_before_and_after(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpt.evaluation.alignment.NUM_TIMESTEPS", 2)
    monkeypatch.setattr("dpt.evaluation.alignment.BATCH_SIZE", 2)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue star\na green star")
    clip = str(tiny_vision.clip(tmp_path / "clip"))
    words = ["--prompts_path_val", str(prompts), "--clip", clip, "--validation_steps", "0", "--learning_rate", "1e-2"]
    assert main_stage2([*command, *words]) == 0
    alignment = json.loads((tmp_path / "logs" / "alignment.json").read_text())
    assert alignment["prompts"] == 3 and -1 <= alignment["base"] <= 1 and alignment["base"] != alignment["tuned"]
    assert f"{alignment['base']:.4f} without the LoRA, {alignment['tuned']:.4f} with it" in capsys.readouterr().out


def test_the_control_needs_no_adapter(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "leave --qformer_ckpt out" in refused([*command, "--plain_lora"], capsys)
    assert main_stage2([*command[:-2], "--plain_lora"]) == 0
    assert sorted(p.name for p in (tmp_path / "logs").iterdir() if p.is_dir() and p.name != "logs") == [
        "checkpoint-1", "checkpoint-2", "lora"
    ]  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "logs" / "log.jsonl").read_text().splitlines()]
    assert {"mse", "loss"} <= lines[0].keys() and "i2t" not in lines[0]


def test_exported_lora_is_the_moving_average(command: list[str], tmp_path: Path) -> None:
    assert main_stage2([*command, "--ema_decay", "0.5", "--learning_rate", "1e-2", "--max_train_steps", "3"]) == 0
    groups, _ = run_folder.load(tmp_path / "logs" / "checkpoint-3")
    exported = read_lora(tmp_path / "logs" / "lora").tensors
    assert all(torch.equal(value, groups["average"][f"lora.{name}"]) for name, value in exported.items())
    assert any(not torch.equal(value, groups["weights"][f"lora.{name}"]) for name, value in exported.items())


def test_initial_adapter_is_part_of_the_configuration(
    command: list[str], first: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_stage2(command) == 0
    words = ["--pretrained_model_name_or_path", str(model), *SMALL, "--output_dir", str(tmp_path / "other")]
    assert train_stage1.main_stage1([*words, "--dropout", "0", "--seed", "5"]) == 0
    output = refused([*command[:-1], str(tmp_path / "other")], capsys)
    assert "qformer_sha256 was" in output


def test_adapter_of_another_model_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_models.save(tiny_models.POCKET, tmp_path / "other", seed=9)
    output = refused([*command, "--pretrained_model_name_or_path", str(other)], capsys)
    assert "was trained to read another model" in output
    assert "pass --allow_other_base" in output
    assert not (tmp_path / "logs").exists()


def test_allow_other_base_uses_the_adapter_of_another_model(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_models.save(tiny_models.POCKET, tmp_path / "other", seed=9)
    assert main_stage2([*command, "--pretrained_model_name_or_path", str(other), "--allow_other_base"]) == 0
    assert "was trained to read another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--unet_feature up1", "reads up0, not --unet_feature up1"),
        ("--dec_layers 3", "has dec_layers 1, not 3: leave the flag out"),
        ("--lora_rank 0", "rank of a LoRA must be at least 1, not 0"),
        ("--lora_alpha -1", "alpha of a LoRA must be positive, not -1"),
        ("--lora_blocks top", "no block 'top' for a LoRA; valid are all, down, mid, up, bottom0"),
        ("--detach_unet_feature top", "--detach_unet_feature is one of bottom0"),
        ("--snr_gamma 0", "--snr_gamma must be positive, not 0"),
        ("--mse_loss_coef nan", "--mse_loss_coef must be a number of at least 0, not nan"),
        ("--mend_loss_coef 1", "--mend_loss_coef was removed"),
        ("--ema_decay 1", "--ema_decay is at least 0 and below 1, not 1"),
        ("--plain_lora --only_train_lora --qformer_ckpt None", "leave --only_train_lora out"),
        ("--qformer_ckpt nowhere", "there is no adapter nowhere"),
        ("--prompts_path_val x", "cannot read x"),
        (f"--prompts_path_val {PROMPTS}", "--prompts_path_val needs a CLIP: give --clip"),
        (f"--prompts_path_val {PROMPTS} --clip nowhere", "nowhere"),
        (f"--clip {ROOT}", "--clip has no effect without --prompts_path_val"),
        ("--num_validation_images 0", "--num_validation_images must be at least 1, not 0"),
    ],
)
def test_invalid_input_is_refused_in_one_sentence(
    command: list[str], words: str, sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert sentence in refused([*command, *words.split()], capsys)
    assert not list(tmp_path.rglob("checkpoint-*")), "nothing half-written"


def test_untrained_adapter_gives_a_warning(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    shape = "--hidden_dim 16 --nheads 2 --dim_feedforward 32 --num_queries_matching 3 --num_queries_rec 5"
    small = shlex.split(shape)
    assert main_stage2([*command[:-2], *small, "--validation_steps", "0"]) == 0
    assert "warning: without --qformer_ckpt the adapter starts untrained" in capsys.readouterr().err


def test_defaults_equal_the_published_ones() -> None:
    options = Stage2Options()
    assert (options.lora.lora_rank, options.lora.lora_alpha, options.lora.lora_blocks) == (4, None, ("all",))
    assert (options.denoising.mse_loss_coef, options.denoising.snr_gamma) == (1.0, None)
