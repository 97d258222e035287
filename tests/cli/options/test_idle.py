"""Flags that would do nothing beside others are said to; what cannot be learnt from is refused."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from dpt.backbone.speedups import use_tf32
from dpt.cli.common.console import parse_options
from dpt.cli.train import stages as train_stage1
from dpt.cli.train import stages as train_stage2
from dpt.cli.train.options import given_flags
from dpt.cli.train.stages import Stage1Options, Stage2Options
from dpt.training.engine.loop import Loop, Outcome
from tests.cli.options.making import SAMPLE
from tests.cli.options.test_trainers import SMALL
from tests.training import tiny_stage1

Capture = pytest.CaptureFixture[str]
FILES = f"--data_root {SAMPLE}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_stage1.model(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize(
    ("kind", "words", "idle"),
    [
        (Stage1Options, "--dataset_name refcoco --dataset_name_val refcoco --combine_datasets_val refcoco "
         "--val_fullset --corrupt_budget 2 --center_crop",
         "dataset_name dataset_name_val combine_datasets_val val_fullset corrupt_budget center_crop"),
        (Stage1Options, f"{FILES} --scenes full --validation_scenes 3 --val_fullset --center_crop",
         "scenes validation_scenes"),
        (Stage1Options, f"{FILES} --dataset_name_val refcocog --combine_datasets_val refcoco", "combine_datasets_val"),
        (Stage1Options, "--validation_steps 0 --validation_scenes 9 --no_detection --val_batch_size 2",
         "validation_scenes no_detection val_batch_size"),
        (Stage1Options, "--max_train_steps 5 --num_train_epochs 2", "num_train_epochs"),
        (Stage1Options, "--num_train_epochs 2", ""),
        (Stage1Options, "--report_to none --logging_dir here", "logging_dir"),
        (Stage1Options, "--no_contrastive_align_loss --contrastive_align_loss_coef 2 --contrastive_loss_hdim 9 "
         "--temperature_NCE 1", "contrastive_align_loss_coef contrastive_loss_hdim temperature_NCE"),
        (Stage1Options, "--contrastive_align_loss_coef 0 --ce_loss_coef 0 --temperature_NCE 1 --eos_coef 1 "
         "--set_cost_bbox 1", "temperature_NCE eos_coef"),
        (Stage1Options, "--contrastive_align_loss_coef 0 --ce_loss_coef 0 --bbox_loss_coef 0 --giou_loss_coef 0 "
         "--set_cost_bbox 1 --set_cost_class 2 --set_cost_giou 3", "set_cost_bbox set_cost_class set_cost_giou"),
        (Stage1Options, "--prediction_type epsilon", "prediction_type"),
        (Stage2Options, "--prediction_type epsilon --num_validation_images 2", "num_validation_images"),
        (Stage2Options, "--plain_lora --unet_feature mid --hidden_dim 8 --i2t_loss_coef 2 --no_detection "
         "--adapter_precision bf16 --fix_timestep 3 --noise_offset 0.1 --snr_gamma 5",
         "unet_feature hidden_dim i2t_loss_coef no_detection adapter_precision"),
        (Stage2Options, "--only_train_lora --dropout 0.3", "dropout"),
        (Stage2Options, "--mse_loss_coef 0 --snr_gamma 5 --detach_unet_feature mid", "snr_gamma detach_unet_feature"),
    ],
)  # fmt: skip
def test_what_changes_nothing_beside_the_others_is_known(
    kind: type[Stage1Options] | type[Stage2Options], words: str, idle: str
) -> None:
    options = parse_options(kind, words.split(), "train")
    assert {name for name in given_flags(options) if name in options.idle()} == set(idle.split())


def ended(command: str, words: str, model: str, capsys: Capture, tmp_path: Path) -> tuple[int, str]:
    main = {"1": train_stage1.main_stage1, "2": train_stage2.main_stage2}[command]
    capsys.readouterr()
    with patch.object(Loop, "run", lambda *_: Outcome(0, finished=False)):
        code = main([*SMALL.format(model=model).split(), "--output_dir", str(tmp_path), *words.split()])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [
        ("1", "--i2t_loss_coef nan", "--i2t_loss_coef must be a number from 0 up, not nan"),
        ("1", "--eos_coef -1", "--eos_coef must be a number from 0 up, not -1.0"),
        ("1", "--set_cost_giou inf", "--set_cost_giou must be a number from 0 up, not inf"),
        ("1", "--temperature_NCE 0", "--temperature_NCE must be a positive number, not 0.0"),
        ("1", "--noise_offset nan", "--noise_offset must be a number, not nan"),
        ("1", "--learning_rate inf", "--learning_rate must be positive, not inf"),
        ("1", "--adam_weight_decay inf", "--adam_weight_decay must be a number, not inf"),
        ("1", "--lr_scheduler polynomial --learning_rate 1e-8", "polynomial ends at 1e-07, so --learning_rate must be"),
        ("1", "--nheads 0", "nheads must be at least 1, not 0"),
        ("1", "--dim_feedforward 0", "dim_feedforward must be at least 1, not 0"),
        ("1", "--contrastive_loss_hdim 0", "contrastive_loss_hdim must be at least 1, not 0"),
        ("1", "--num_queries_rec 0", "--num_queries_rec 0 leaves nothing to ground with"),
        ("2", "--plain_lora --detach_unet_feature mid", "--detach_unet_feature would leave blocks untrained"),
        ("2", "--plain_lora --mse_loss_coef 0", "with --mse_loss_coef 0 it would learn nothing"),
        ("2", "--mse_loss_coef 0 --lora_blocks up1", "the LoRA would learn nothing"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(
    command: str, words: str, sentence: str, model: str, capsys: Capture, tmp_path: Path
) -> None:
    code, said = ended(command, words, model, capsys, tmp_path)
    assert code == 2 and sentence in said


def test_no_query_is_needed_where_nothing_is_grounded(model: str, capsys: Capture, tmp_path: Path) -> None:
    matching_alone = "--ce_loss_coef 0 --bbox_loss_coef 0 --giou_loss_coef 0 --contrastive_align_loss_coef 0"
    assert ended("1", f"--num_queries_rec 0 {matching_alone}", model, capsys, tmp_path)[0] == 75


def test_a_warm_up_that_does_not_end_is_warned_of(model: str, capsys: Capture, tmp_path: Path) -> None:
    assert "before its learning rate has warmed up" in ended("1", "--lr_warmup_steps 2", model, capsys, tmp_path)[1]
    assert "warmed up" not in ended("1", "--lr_warmup_steps 1", model, capsys, tmp_path)[1]


def test_of_a_moment_that_there_is_not_nothing_can_be_reset(model: str, capsys: Capture, tmp_path: Path) -> None:
    words = [*SMALL.format(model=model).split(), "--validation_steps", "0", "--output_dir", str(tmp_path)]
    for said in (True, False):
        capsys.readouterr()
        assert train_stage1.main_stage1([*words, "--reset_optimizer"]) == 0
        assert ("--reset_optimizer has no effect" in capsys.readouterr().out) is said


def test_rounding_is_for_gpus() -> None:
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        with pytest.warns(UserWarning, match="a CPU does not round"):
            use_tf32(torch.device("cpu"))
        assert not matmul.allow_tf32
        use_tf32(torch.device("cuda"))
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before
