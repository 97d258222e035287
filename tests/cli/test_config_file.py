"""`--config run.toml`: flags from a file, and the resolved flags beside a run, which read back."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from dpt.cli.common.config_file import options_of_file, take_config_flag, to_toml
from dpt.cli.common.console import parse_options
from dpt.cli.prefer.train import PreferTrainOptions
from dpt.cli.prefer.tune import HpsOptions
from dpt.cli.train.options import PUBLISHED, OutputOptions
from dpt.cli.train.setup import with_run_name
from dpt.cli.train.stages import Stage1Options, Stage2Options
from dpt.errors import UserError

FLAGS = """
max_train_steps = 20
learning-rate = 1e-3   # dashes work too
[data]
data_root = "some/folder"
combine_datasets_val = ["refcoco"]
[anything]
lora_rank = 8
plain_lora = true
validation_prompts = ["a \\"red\\" circle", "ü"]
batch_size = 2
"""


def options(file: Path, text: str = FLAGS, kind: type = Stage2Options) -> Stage2Options:
    file.write_text(text, encoding="utf-8")
    return options_of_file(file, kind, PUBLISHED)


def test_a_file_gives_flags_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    words = ["--config", str(file), "--lora_rank", "16", "--no_plain_lora"]
    from_file = options(file)
    assert from_file.optimisation.learning_rate == 1e-3 and from_file.optimisation.train_batch_size == 2
    assert from_file.data.data_root == Path("some/folder") and from_file.data.combine_datasets_val == ("refcoco",)
    assert from_file.samples.validation_prompts == ('a "red" circle', "ü") and from_file.lora.plain_lora
    kept, named = take_config_flag(words)
    assert named == file and take_config_flag([f"--config={file}"]) == ([], file)
    parsed = parse_options(Stage2Options, kept, "train_stage2.py", PUBLISHED, from_file)
    assert parsed.lora.lora_rank == 16 and not parsed.lora.plain_lora
    assert replace(parsed, lora=from_file.lora) == from_file


@pytest.mark.parametrize("kind", [Stage1Options, Stage2Options, HpsOptions, PreferTrainOptions])
def test_resolved_flags_read_back(kind: type, tmp_path: Path) -> None:
    words = ["--learning_rate", "3e-05", "--output_dir", 'a "b"\\c', "--keep_best", "mse", "--checkpointing_steps", "7"]
    parsed = parse_options(kind, words, "x")
    if kind is not PreferTrainOptions:
        parsed = parse_options(kind, [*words, "--hub_token", "secret", "--push_to_hub"], "x")
    text = to_toml(parsed)
    assert "secret" not in text
    again = options(tmp_path / "run.toml", text, kind)
    if kind is not PreferTrainOptions:
        again = replace(again, hub=replace(again.hub, hub_token="secret"))
    assert again == parsed


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("learning_rat = 1", "there is no flag 'learning_rat', did you mean --learning_rate?"),
        ("learning_rate = 'fast'", "learning_rate: expected float, got 'fast'"),
        ("max_train_steps = true", "max_train_steps: expected int, got True"),
        ("lr_warmup_steps = 1\n[a]\nlr_warmup_steps = 2", "lr_warmup_steps is given twice"),
        ("masks = true", "masks asks for segmentation"),
        ("a = [", "is not TOML"),
        ("a = " + "[" * 20_000, "nests too deeply"),
        ("weight_decay_on = 'some'", "weight_decay_on: expected one of 'all', 'matrices'"),
    ],
)
def test_faults_of_a_file_are_named(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)) as raised:
        options(tmp_path / "run.toml", text)
    assert "run.toml" in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--config: there is no file"):
        options_of_file(tmp_path / "none.toml", Stage2Options, PUBLISHED)
    with pytest.raises(UserError, match="--config needs a TOML file"):
        take_config_flag(["--config", "--seed", "1"])


def test_a_run_without_a_name_is_found_again_by_its_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def name(*words: str) -> str:
        parsed = parse_options(Stage1Options, words, "train_stage1.py")
        return with_run_name(parsed.output, parsed.task_name, parsed).run_name

    plain = name()
    assert re.fullmatch("stage1-[0-9a-f]{8}", plain) and name("--logging_steps", "3") == plain
    assert name("--learning_rate", "1e-3") != plain
    assert name("--run_name", "mine") == "mine" and name("--output_dir", "elsewhere") == ""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/config.json").write_text("{}")
    assert name() == "" and OutputOptions().output_dir == Path("logs")
