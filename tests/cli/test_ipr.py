"""`dpt ipr run`: recipes as presets, and what its flags refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpt.cli.common.console import parse
from dpt.cli.ipr.run import IPRRunOptions, main, run
from dpt.cli.main import run as dpt
from dpt.errors import UserError
from dpt.methods.ipr.config import RECIPES, SD21, IPRConfig


def options(*words: str) -> IPRRunOptions:
    parsed = parse(run, words, "dpt ipr run")
    assert isinstance(parsed, IPRRunOptions)
    return parsed


def test_a_recipe_presets_flags_and_flags_change_it() -> None:
    assert options().config == IPRConfig()
    full = options("--recipe", "sdv2")
    assert full.config == RECIPES["sdv2"] and full.mixed_precision == "fp16"
    assert (full.config.train.full, full.config.train.gradient_accumulation_steps) == (True, 4)
    lora = options("--recipe=sdv2-lora", "--learning_rate", "1e-4", "--rounds", "3")
    assert (lora.pretrained_model_name_or_path, lora.config.train.train_batch_size) == (SD21, 2)
    assert (lora.config.train.learning_rate, lora.config.rounds, lora.config.seed) == (1e-4, 3, 42)
    assert not any(recipe.train.random_flip for recipe in RECIPES.values())
    assert [RECIPES["sdxl-lora"].train.epochs(round_) for round_ in range(3)] == [4, 2, 2]
    with pytest.raises(UserError, match="there is no recipe 'sdv3'; the recipes are sdv2, sdv2-lora, sdxl-lora"):
        options("--recipe", "sdv3")


def test_flags_without_effect_are_named() -> None:
    assert not options().config.unused_flags() and not options("--recipe", "sdv2").config.unused_flags()
    words = "--full --lora_rank 8 --also_weight 0.5 --failures drop --counting digits --judge_ckpt x --learning_rate 1"
    assert set(options(*words.split()).config.unused_flags()) == {"lora_rank", "also_weight", "counting", "judge_ckpt"}
    by_adapter = options("--judge", "adapter", "--tie_margin", "3", "--weight_by_confidence").config.unused_flags()
    assert set(by_adapter) == {"tie_margin", "weight_by_confidence"}
    words = "--categories spatial --prompts_per_category 4 --prompts 5 --held_out 0 --measure_per_prompt 2"
    assert set(options(*words.split()).config.unused_flags()) == {"prompts", "measure_per_prompt"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--rounds 0", "--rounds is from 1 to 100, not 0"),
        ("--prompts 0", "--prompts must be at least 1"),
        ("--categories spatial single --prompts_per_category 4", "has 1 numbers for 2 --categories: give one for each"),
        ("--logit_std 0", "--logit_mean must be a number and --logit_std positive, not 0 and 0"),
        ("--measure_timesteps 0", "--measure_timesteps must be at least 1"),
        ("--suite pocket --categories nothing", "there is no category 'nothing'"),
        ("--suite prompts=x", "cannot read x"),
        ("--suite lmd --prompts_seed 3", "--prompts_seed changes the prompts of the pocket suite"),
        ("--detect_threshold 2", "--detect_threshold is between 0 and 1"),
        ("--also_weight -1", "--also_weight must be at least 0"),
        ("--num_train_epochs 0", "--num_train_epochs needs at least one number"),
        ("--held_out_fraction 1", "--held_out_fraction is at least 0 and below 1"),
        ("--learning_rat 1", "has no flag --learning_rat, did you mean --learning_rate"),
    ],
)
def test_bad_flags_are_one_sentence(words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and says in error
    assert not (tmp_path / "out" / "round-0").exists()


def test_report_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is neither a finished run, nor a folder of `dpt ipr detect`"):
        dpt(["ipr", "report", str(tmp_path)])
