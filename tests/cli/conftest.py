"""A tiny model, a result, and a benchmark of both, for all tests of the benchmark: read only."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dpt.adapter import Adapter, config_for
from dpt.adapter.io import save_adapter
from dpt.backbone import open_backbone
from dpt.cli.bench.run import run
from dpt.lora import LoraConfig
from dpt.lora.io import save_lora
from tests import tiny_models
from tests.cli.test_bench import options
from tests.lora.test_injection import filled
from tests.training.tiny_stage1 import SMALL


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tiny_models.POCKET, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tuned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone, root = open_backbone(model, device="cpu"), tmp_path_factory.mktemp("tuned")
    lora = filled(backbone, LoraConfig(rank=2))
    save_lora(lora.state(), lora.config, root / "lora", base="tiny", base_hash=backbone.model_hash)
    return root


@pytest.fixture(scope="session")
def drawn(model: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    run(options(model, out, "base", f"tuned={tuned}"))
    return out


@pytest.fixture(scope="session")
def whole(tuned: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with LoRA and adapter."""
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(tuned / "lora", root / "lora")
    backbone = open_backbone(model, device="cpu")
    built = Adapter(config_for(backbone, "up0", backbone.text_width, text_encoder_type="backbone", **SMALL))
    save_adapter(built, root / "adapter", base="tiny", base_hash=backbone.model_hash)
    return root
