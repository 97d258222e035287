"""Speed-up flags of `txt2img.py` are printed, recorded, and change images by rounding only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpt.cli.txt2img import main as txt2img
from tests import tiny_models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tiny_models.POCKET, tmp_path_factory.mktemp("pocket") / "model")


def drawn(model: Path, outdir: Path, *more: str) -> tuple[np.ndarray, list[str]]:
    words = ["--prompt", tiny_models.PROMPT, "--num_timesteps", "2", "--n_samples", "1", "--outdir", str(outdir)]
    assert txt2img.main([*words, "--pretrained_model_name_or_path", str(model), "--gpu", "cpu", *more]) == 0
    (folder,) = outdir.iterdir()
    picture = np.asarray(Image.open(next(folder.glob("0*.png"))), int)
    return picture, json.loads((folder / "manifest.json").read_text())["changed_for_speed"]


def test_compile_and_channels_last_give_the_same_images(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without compiling, which takes a minute: tests/backbone/test_speedups.py compares compiled blocks."""
    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    plain, speedups = drawn(model, tmp_path / "plain")
    assert speedups == []
    fast, speedups = drawn(model, tmp_path / "fast", "--compile", "--channels_last")
    assert [speedup.partition(":")[0] for speedup in speedups] == ["compile", "channels_last"]
    assert np.abs(fast - plain).max() <= 1


def test_applied_speedups_are_printed(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, speedups = drawn(model, tmp_path, "--channels_last", "--allow_tf32")
    printed = capsys.readouterr()
    assert len(speedups) == 1 and speedups[0] in printed.out
    assert "--allow_tf32 has no effect: a CPU does not round float32" in printed.err + printed.out
