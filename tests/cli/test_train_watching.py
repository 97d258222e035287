"""A tuning run as its user sees it: samples on the way, the best result, resolved flags, where losses are tracked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dpt.cli.train.stages import main_stage2
from dpt.data.files.reading import DataRoot
from dpt.data.files.source import training_files
from dpt.data.images import Framing
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, make_scene
from dpt.embedded import EMBEDDED_MODELS
from tests.training import tiny_stage1


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(6):
        Image.fromarray(render(make_scene(5, number, POCKET_WORLD))).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"a red circle {number}")
    model = str(tiny_stage1.model(tmp_path / "model"))
    run = ["--pretrained_model_name_or_path", model, "--data_root", str(pictures), "--plain_lora", "--lora_rank", "2"]
    length = ["--train_batch_size", "2", "--max_train_steps", "2", "--logging_steps", "1", "--validation_steps", "1"]
    return [*run, *length, "--val_fraction", "0.4", "--learning_rate", "1e-2", "--output_dir", str(tmp_path / "runs")]


def test_samples_and_the_best_result_do_not_change_the_run(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, watched = tmp_path / "runs/plain", tmp_path / "runs/watched"
    assert main_stage2([*words, "--run_name", "plain", "--validation_steps", "0", "--report_to", "none"]) == 0
    capsys.readouterr()
    samples = ["--validation_prompts", "a red circle", "--num_validation_images", "1", "--sample_steps", "2"]
    assert main_stage2([*words, "--run_name", "watched", "--keep_best", "mse", *samples]) == 0
    out = capsys.readouterr().out
    assert f"run folder: {watched}; losses in log.jsonl" in out and "best mse: " in out
    assert f'next: dpt txt2img --prompt "…" --ckpt {watched} --compare --pretrained_model_name_or_path ' in out
    first, second = (load_file(next(root.glob("lora/*.safetensors"))) for root in (plain, watched))
    assert all(torch.equal(first[name], second[name]) for name in first) and first.keys() == second.keys()
    sheets = sorted(file.name for file in (watched / "samples").iterdir())
    assert sheets == ["step-000002.png"] and (watched / "samples.png").is_file()
    record = json.loads((watched / "best/best.json").read_text())
    lines = [json.loads(line) for line in (watched / "log.jsonl").read_text().splitlines()]
    validated = {line["step"]: line["validation"]["mse"] for line in lines if "validation" in line}
    assert record["value"] == min(validated.values()) == validated[record["step"]] and len(validated) == 2
    assert (watched / "best/lora").is_dir()
    capsys.readouterr()
    assert main_stage2(["--config", str(watched / "run.toml")]) == 0
    assert "continuing after step 2" in capsys.readouterr().out


def test_captions_with_words_that_an_embedded_model_does_not_know_are_counted(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, caption in enumerate(["a red house", "a boat, a House", "a star"]):
        (tmp_path / f"pictures/{number}.txt").write_text(caption)
    for number in range(3, 6):
        (tmp_path / f"pictures/{number}.txt").write_text("A red circle and two crosses")
    model = str(tmp_path / "model")
    for known in (False, True):
        if known:
            monkeypatch.setattr("dpt.cli.common.console.EMBEDDED_MODELS", (*EMBEDDED_MODELS, model))
        run = ["--run_name", str(known), "--max_train_steps", "1", "--validation_steps", "0", "--report_to", "none"]
        assert main_stage2([*words, "--val_fraction", "0", *run]) == 0
        warned = [line for line in capsys.readouterr().err.splitlines() if "miniature" in line]
        named = "'house' in 2, 'boat' in 1, 'star' in 1"
        assert warned == [
            f"warning: 3 of 6 captions have words that {model}, a miniature, does not know: {named}. "
            "For such images give a real model: --pretrained_model_name_or_path FOLDER"
        ] * known  # fmt: skip
    source = training_files(DataRoot(Path("data/sample")), "refall", Framing(64), 0)
    assert len(list(source.captions())) == len(source.negatives or ()) == 8


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--early_stopping_patience", "2"], "--early_stopping_patience needs --keep_best METRIC"),
        (["--keep_best", "mse", "--validation_steps", "0"], "--keep_best needs validations"),
        (["--keep_best", "mse", "--early_stopping_patience", "0"], "must be at least 1, not 0"),
        (["--sample_steps", "2"], "--sample_steps needs prompts to sample"),
        (["--val_fraction", "0.99"], "of the 6 images of"),
        (["--val_fraction", "1.5"], "--val_fraction must be at least 0 and below 1"),
    ],
)
def test_faults_are_named(
    flags: list[str], sentence: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_stage2([*words, *flags]) == 2
    assert sentence in capsys.readouterr().err
