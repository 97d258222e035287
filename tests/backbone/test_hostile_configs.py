"""Configs with impossible values are refused with a sentence before anything is allocated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpt.backbone.folder import ModelFolder
from dpt.backbone.opening import open_hf_model
from dpt.errors import UserError
from tests import tiny_models
from tests.evaluation import tiny_vision


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tiny_models.POCKET, tmp_path_factory.mktemp("model") / "model")


@pytest.mark.parametrize(
    ("part", "key", "value", "sentence"),
    [
        ("unet", "sample_size", 10_000_000, "sample_size is 10000000, which no model has"),
        ("unet", "layers_per_block", 10_000_000, "layers_per_block is 10000000, which no model has"),
        ("unet", "block_out_channels", [8] * 1000, "block_out_channels has 1000 entries"),
        ("unet", "block_out_channels", [8, 16, 10**9], "block_out_channels is 1000000000, which no model has"),
        ("unet", "cross_attention_dim", -1, "cross_attention_dim is -1, which no model has"),
        ("text_encoder", "num_hidden_layers", 1_000_000, "num_hidden_layers is 1000000, which no model has"),
        ("text_encoder", "vocab_size", 10**12, "vocab_size is 1000000000000, which no model has"),
        ("vae", "scaling_factor", 0, "scaling_factor should be a finite number other than 0, not 0"),
        ("vae", "scaling_factor", "x", "scaling_factor should be a finite number other than 0, not 'x'"),
        ("vae", "scaling_factor", 1e999, "Infinity|scaling_factor should be a finite number"),
        ("vae", "shift_factor", "x", "shift_factor should be a finite number, not 'x'"),
        ("scheduler", "num_train_timesteps", 10**12, "num_train_timesteps is 1000000000000, which no model has"),
    ],
)
def test_model_with_an_invalid_value_is_refused(part: str, key: str, value: Any, sentence: str, model: Path) -> None:
    file = model / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    before = file.read_text()
    try:
        file.write_text(json.dumps({**json.loads(before), key: value}))
        with pytest.raises(UserError, match=sentence) as refused:
            ModelFolder.check(model)
        assert str(file) in str(refused.value)
    finally:
        file.write_text(before)


def test_transformers_model_with_an_invalid_value_is_refused(tmp_path: Path) -> None:
    folder = tiny_vision.clip(tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1_000_000
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json: num_hidden_layers is 1000000, which no model has"):
        open_hf_model(str(folder), ("clip",), "CLIP")
