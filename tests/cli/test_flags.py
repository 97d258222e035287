"""Every flag of the training commands and of txt2img has an effect, or a message says that it has none."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from dpt.cli.common.console import parse_options
from dpt.cli.main import COMMANDS, load
from dpt.cli.prefer.train import PreferTrainOptions
from dpt.cli.prefer.tune import HpsOptions
from dpt.cli.train.options import given_flags
from dpt.cli.train.stages import Stage1Options, Stage2Options, main_stage1, main_stage2
from dpt.cli.txt2img import main as txt2img
from dpt.sampling.options import SamplerConfig
from dpt.sampling.schedulers import SCHEDULER_NAMES
from dpt.training.engine.settings import TrainSettings
from tests import tiny_models
from tests.checkpoints.making import tiny_result
from tests.training import tiny_stage1

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data" / "sample"
Capture = pytest.CaptureFixture[str]


def groups_of(options: Any) -> dict[str, list[str]]:
    """Flags by the class that declares them."""
    groups: dict[str, list[str]] = {}
    for name, hint in get_type_hints(options).items():
        if is_dataclass(hint):
            groups |= groups_of(hint)
        elif name in {field.name for field in fields(options)}:
            groups.setdefault(options.__name__, []).append(name)
    return groups


def names_read(files: list[Path]) -> set[str]:
    """Names of attributes and string constants in these files."""
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return attributes | strings


@pytest.mark.parametrize("options", [Stage1Options, Stage2Options])
def test_every_training_flag_is_read_somewhere(options: Any) -> None:
    """By the engine's settings, or by a file beside the one that declares the flags."""
    files = [file for file in (ROOT / "dpt/cli/train").glob("*.py") if file.name != "options.py"]
    readers = names_read(files) | {field.name for field in fields(TrainSettings)}
    unread = {name for names in groups_of(options).values() for name in names if name not in readers}
    assert unread <= {"set_loss", "dataset_name_matching"}, "these two have one valid value"


SMALL = (
    "--unet_feature up0 --hidden_dim 16 --nheads 2 --dim_feedforward 32 --num_queries_matching 3 --num_queries_rec 5 "
    "--train_batch_size 2 --val_batch_size 4 --validation_scenes 1 --logging_steps 1 --max_train_steps 2 --lora_rank 2 "
    "--lora_blocks bottom1 --report_to none --validation_steps 0 --learning_rate 1e-2"
)
CHANGES_THE_LOSSES = """
    --seed 7 | --max_train_steps 1 | --train_batch_size 1 | --gradient_accumulation_steps 2 | --learning_rate 1e-3
    --lr_scheduler linear | --lr_warmup_steps 1 | --scale_lr | --unet_feature mid | --prediction_type epsilon
    --scenes full | --random_flip | --resolution 32 | --position_embedding learned | --code_placement sequence
    --enc_layers 2 | --dec_layers 2 | --dim_feedforward 24 | --hidden_dim 8 | --nheads 4 | --dropout 0.7
    --num_queries_matching 2 | --num_queries_rec 4 | --pre_norm | --no_contrastive_align_loss
    --contrastive_loss_hdim 8 | --fix_timestep 7 | --noise_offset 0.5 | --i2t_loss_coef 3 | --t2i_loss_coef 3
    --ce_loss_coef 3 | --bbox_loss_coef 7 | --giou_loss_coef 4 | --contrastive_align_loss_coef 3 | --eos_coef 0.5
    --temperature_NCE 0.7 | --lora_rank 3 | --lora_alpha 9 | --lora_blocks mid | --only_train_lora | --plain_lora
    --mse_loss_coef 3 | --snr_gamma 0.1
"""
CHANGES_THE_WEIGHTS = """
    --adam_beta1 0.5 | --adam_beta2 0.5 | --adam_epsilon 1e-2 | --adam_weight_decay 0.5 | --weight_decay_on matrices
    --ema_decay 0.5 | --max_grad_norm 0.01 | --detach_unet_feature bottom1
"""


def cases(table: str) -> list[str]:
    return [case.strip() for line in table.strip().splitlines() for case in line.split("|")]


def trained(model: Path, root: Path, words: str) -> tuple[list[Any], dict[str, str]]:
    """The losses of each step, and the hash of each exported tensor file."""
    command = [*shlex.split(SMALL), "--pretrained_model_name_or_path", str(model), "--output_dir", str(root)]
    assert main_stage2([*command, *shlex.split(words)]) == 0, words
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    losses = [{key: line[key] for key in line if key in ("loss", "lr", "images", "step", "mse", "i2t", "ce")}
              for line in lines if "loss" in line]  # fmt: skip
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in root.glob("[al]*/*.safetensors")}
    return losses, files


@pytest.mark.nightly
def test_flags_of_training_change_the_losses_or_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpt.training.engine.logging.plot_curve", lambda *_: None)
    model = tiny_stage1.model(tmp_path / "model")
    before = trained(model, tmp_path / "before", "")
    assert trained(model, tmp_path / "again", "") == before
    silent = []
    for number, words in enumerate([*cases(CHANGES_THE_LOSSES), *cases(CHANGES_THE_WEIGHTS)]):
        losses, files = trained(model, tmp_path / str(number), words)
        if (losses == before[0]) if words in cases(CHANGES_THE_LOSSES) else (files == before[1]):
            silent.append(words)
    assert not silent


@pytest.mark.slow
def test_some_flags_of_training_change_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of the nightly scan, one flag of each group."""
    monkeypatch.setattr("dpt.training.engine.logging.plot_curve", lambda *_: None)
    model = tiny_stage1.model(tmp_path / "model")
    before, _ = trained(model, tmp_path / "before", "")
    for words in ("--seed 7", "--random_flip", "--eos_coef 0.5", "--lora_alpha 9"):
        assert words in cases(CHANGES_THE_LOSSES)
        assert trained(model, tmp_path / words.split()[0], words)[0] != before, words


UNUSED: list[tuple[type[Stage1Options] | type[Stage2Options], str, str]] = [
    (Stage1Options, "--dataset_name refcoco --dataset_name_val refcoco --combine_datasets_val refcoco --val_fullset "
     "--corrupt_budget 2 --center_crop",
     "dataset_name dataset_name_val combine_datasets_val val_fullset corrupt_budget center_crop"),
    (Stage1Options, f"--data_root {SAMPLE} --scenes full --validation_scenes 3 --val_fullset --center_crop",
     "scenes validation_scenes"),
    (Stage1Options, f"--data_root {SAMPLE} --dataset_name_val refcocog --combine_datasets_val refcoco",
     "combine_datasets_val"),
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
]  # fmt: skip


def test_flags_without_effect_beside_others_are_reported() -> None:
    for kind, words, unused in UNUSED:
        options = parse_options(kind, words.split(), "train")
        given = given_flags([getattr(options, group.name) for group in fields(options)])
        assert {name for name in given if name in options.unused_flags()} == set(unused.split()), words


def test_every_scheduler_is_listed_in_the_help() -> None:
    assert set(SCHEDULER_NAMES) <= set(re.split(r"[\s,;]+", inspect.getsource(SamplerConfig)))


@pytest.mark.parametrize("options", [Stage1Options, Stage2Options, HpsOptions, PreferTrainOptions])
def test_help_of_a_training_shows_length_batch_and_rate_first(options: Any, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        parse_options(options, ["--help"], "train")
    flags = re.findall(r"^\W*(--[a-z_A-Z0-9]+)", capsys.readouterr().out, re.M)
    assert [flag for flag in flags if flag not in ("--help", "--recipe")][:5] == [
        "--max_train_steps", "--num_train_epochs", "--train_batch_size", "--gradient_accumulation_steps",
        "--learning_rate",
    ]  # fmt: skip


def test_no_command_writes_over_tracked_files_by_default() -> None:
    """But for `dpt pocket build`, which makes them, and `dpt download`, which replaces no file."""
    written: dict[str, str] = {}
    for name, (entry, _) in COMMANDS.items():
        (options,) = [kind for key, kind in get_type_hints(load(entry)).items() if key != "return"]
        for field in fields(options):
            if field.name in ("out", "outdir", "output_dir") and isinstance(field.default, Path):
                written[name] = field.default.parts[0]
    assert {"bench run", "pocket measure", "sld bench"} <= written.keys()
    del written["pocket build"], written["download"]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert not {name: folder for name, folder in written.items() if f"/{folder}/" not in ignored}


REFUSED = [
    (main_stage1, "--i2t_loss_coef nan", "--i2t_loss_coef must be a number of at least 0, not nan"),
    (main_stage1, "--eos_coef -1", "--eos_coef must be a number of at least 0, not -1.0"),
    (main_stage1, "--set_cost_giou inf", "--set_cost_giou must be a number of at least 0, not inf"),
    (main_stage1, "--temperature_NCE 0", "--temperature_NCE must be a positive number, not 0.0"),
    (main_stage1, "--noise_offset nan", "--noise_offset must be a number, not nan"),
    (main_stage1, "--logit_mean inf", "--logit_mean must be a number, not inf"),
    (main_stage2, "--logit_std 0", "--logit_std must be a positive number, not 0"),
    (main_stage1, "--learning_rate inf", "--learning_rate must be positive, not inf"),
    (main_stage1, "--adam_weight_decay inf", "--adam_weight_decay must be a number, not inf"),
    (main_stage1, "--lr_scheduler polynomial --learning_rate 1e-8", "polynomial ends at 1e-07"),
    (main_stage2, "--plain_lora --detach_unet_feature mid", "--detach_unet_feature would leave blocks untrained"),
    (main_stage2, "--plain_lora --mse_loss_coef 0", "with --mse_loss_coef 0 it would learn nothing"),
]


def test_invalid_values_are_refused(capsys: Capture) -> None:
    for main, words, sentence in REFUSED:
        capsys.readouterr()
        assert main(words.split()) == 2
        assert sentence in capsys.readouterr().err, words


CORRECTED = "--ckpt {result} --correction_factor 3 --correction_norm unit"
SAMPLING: list[tuple[str, str]] = [
    ("", '--prompt "two green stars" | --seed 7 | --negative_prompt "a star" | --num_timesteps 3 | --guidance_scale 2 '
     "| --guidance_start 0.5 | --guidance_end 0.5 | --guidance_rescale 0.5 | --scheduler euler_a | --height 32 "
     "| --width 32 | --resolution 32 | --ckpt {result}"),
    (f"{CORRECTED} --num_timesteps 4", "--correction_factor 6 | --correction_target fused | --correction_norm rms "
     "| --correction_start 0.5 | --correction_end 0.5 | --correction_every 2"),
]  # fmt: skip


def images(call: Callable[[str], int], words: str) -> list[str]:
    before = set(Path("outputs").glob("*"))
    assert call(words) == 0, words
    (folder,) = set(Path("outputs").glob("*")) - before
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("0*.png"))]


def changes_no_image(table: list[tuple[str, str]], tmp_path: Path) -> list[str]:
    """The flags of the table that leave the images as they are."""
    from dpt.backbone import open_backbone

    model = tiny_models.save(tiny_models.POCKET, tmp_path / "model")
    result = tiny_result(open_backbone(model, device="cpu"), tmp_path / "result")

    def call(words: str) -> int:
        common = f"--num_timesteps 2 --n_samples 1 --gpu cpu --pretrained_model_name_or_path {model}"
        return txt2img.main(shlex.split(f"{common} {words}".format(result=result)))

    sampled = partial(images, call)
    silent = []
    for beside, flags in table:
        before = sampled(beside)
        assert sampled(beside) == before
        silent += [words for words in cases(flags) if sampled(f"{beside} {words}") == before]
    return silent


@pytest.mark.nightly
def test_flags_of_sampling_change_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not changes_no_image(SAMPLING, tmp_path)


@pytest.mark.slow
def test_some_flags_of_sampling_change_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of the nightly scan."""
    monkeypatch.chdir(tmp_path)
    some = "--seed 7 | --guidance_rescale 0.5 | --scheduler euler_a | --height 32", "--correction_start 0.5"
    assert all(set(cases(few)) <= set(cases(table)) for few, (_, table) in zip(some, SAMPLING, strict=True))
    assert not changes_no_image([(beside, few) for few, (beside, _) in zip(some, SAMPLING, strict=True)], tmp_path)
