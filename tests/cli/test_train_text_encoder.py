"""`--no_freeze_text_encoder`: the encoder of expressions is trained, saved, resumed, reused and probed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpt.adapter.io import load_adapter
from dpt.adapter.model import PretrainedPhraseEncoder
from dpt.cli.main import run as run_dpt
from dpt.cli.train.stages import main_stage1
from dpt.training.engine import run_folder
from tests import tiny_roberta
from tests.cli.test_train import SMALL, refused
from tests.training import tiny_stage1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_roberta.save(tmp_path_factory.mktemp("roberta"), room=200)


@pytest.fixture
def frozen(model: Path, roberta: Path, tmp_path: Path) -> list[str]:
    fixed = ["--output_dir", str(tmp_path), "--text_encoder_type", str(roberta), "--validation_steps", "0"]
    return ["--pretrained_model_name_or_path", str(model), *SMALL, *fixed]


@pytest.fixture
def trained(frozen: list[str]) -> list[str]:
    return [*frozen, "--no_freeze_text_encoder"]


def encoder_of(run: Path) -> dict[str, Tensor]:
    adapter, _ = load_adapter(run / "adapter")
    assert adapter.text_encoder is not None
    return adapter.text_encoder.encoder.state_dict()


def test_text_encoder_is_trained_saved_and_loaded(
    trained: list[str], model: Path, roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_stage1([*trained, "--run_name", "first", "--validation_steps", "2"]) == 0
    before, after = PretrainedPhraseEncoder.open(roberta).encoder.state_dict(), encoder_of(tmp_path / "first")
    assert {name for name in after if torch.equal(after[name], before[name])} == {
        "pooler.dense.weight", "pooler.dense.bias",
    }  # fmt: skip
    saved, _ = run_folder.load(tmp_path / "first" / "checkpoint-2")
    assert all(f"text_encoder.encoder.{name}" in saved["weights"] for name in after if not name.startswith("pooler"))

    second = ["--run_name", "second", "--qformer_ckpt", str(tmp_path / "first"), "--learning_rate", "1e-12"]
    assert main_stage1([*trained, *second]) == 0
    for name, value in encoder_of(tmp_path / "second").items():
        torch.testing.assert_close(value, after[name], rtol=0, atol=1e-9)

    out = ["--out", str(tmp_path / "probe"), "--num", "4", "--timesteps", "500"]
    run_dpt(["probe", str(tmp_path / "first" / "adapter"), "--pretrained_model_name_or_path", str(model), *out])
    assert (tmp_path / "probe" / "probe.json").exists()


def test_resumed_run_equals_the_uninterrupted_one(trained: list[str], tmp_path: Path) -> None:
    assert main_stage1([*trained, "--run_name", "whole"]) == 0
    assert main_stage1([*trained, "--run_name", "parts", "--max_train_steps", "1"]) == 0
    assert main_stage1([*trained, "--run_name", "parts"]) == 0
    whole, parts = encoder_of(tmp_path / "whole"), encoder_of(tmp_path / "parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_frozen_adapter_can_be_unfrozen_but_not_the_reverse(
    frozen: list[str], trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_stage1([*frozen, "--run_name", "frozen"]) == 0
    assert load_adapter(tmp_path / "frozen" / "adapter")[0].text_encoder is None
    assert main_stage1([*trained, "--run_name", "trained", "--qformer_ckpt", str(tmp_path / "frozen")]) == 0
    back = [*frozen, "--run_name", "back", "--qformer_ckpt", str(tmp_path / "trained")]
    assert "was trained with its text encoder: add --no_freeze_text_encoder" in refused(back, capsys)
    assert "no_freeze_text_encoder was True and is None" in refused([*frozen, "--run_name", "trained"], capsys)


def test_invalid_combinations_are_refused(
    trained: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    clip = [*trained, "--text_encoder_type", "backbone"]
    assert "needs an encoder of its own, as --text_encoder_type roberta-base" in refused(clip, capsys)
    assert "which this run leaves out" in refused([*trained, "--no_contrastive_align_loss"], capsys)
    assert "which this run leaves out" in refused([*trained, "--contrastive_align_loss_coef", "0"], capsys)
    assert not list(tmp_path.iterdir())
