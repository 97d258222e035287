"""Saving and reading a LoRA folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dpt.backbone import Backbone, open_backbone
from dpt.errors import UserError
from dpt.lora import LoraConfig
from dpt.lora.io import RECORD, WEIGHTS, attach_lora, read_lora, save_lora
from tests import tiny_models
from tests.lora.test_injection import filled


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tiny_models.SD2_BASE, tmp_path_factory.mktemp("model"))


@pytest.fixture
def backbone(model: Path) -> Backbone:
    return open_backbone(model, device="cpu")


@pytest.fixture
def stored(backbone: Backbone, tmp_path: Path) -> Path:
    lora = filled(backbone, LoraConfig(rank=2, alpha=3.0, blocks=("down",)))
    where = {"base": "tiny", "base_hash": backbone.model_hash, "prediction_type": "epsilon"}
    save_lora(lora.state(), lora.config, tmp_path / "lora", **where)
    lora.remove()
    return tmp_path / "lora"


def test_saved_lora_is_read_back(backbone: Backbone, stored: Path) -> None:
    loaded = read_lora(stored)
    assert loaded.record.config == LoraConfig(2, 3.0, ("down",))
    lora = attach_lora(backbone, loaded, str(stored))
    assert all(torch.equal(tensor, loaded.tensors[name]) for name, tensor in lora.state().items())
    assert lora.config.scale == 1.5


def test_damaged_files_are_detected(stored: Path) -> None:
    content = bytearray((stored / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (stored / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"lora.safetensors is damaged: .*SHA-256 differs"):
        read_lora(stored)
    (stored / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"has no lora.safetensors"):
        read_lora(stored)


def test_lora_of_another_model_is_refused(backbone: Backbone, stored: Path, tmp_path: Path) -> None:
    other = open_backbone(tiny_models.save(tiny_models.SD2_BASE, tmp_path / "other", seed=1), device="cpu")
    with pytest.raises(UserError, match=r"was trained in another model, tiny"):
        attach_lora(other, read_lora(stored), str(stored))


def test_lora_that_does_not_fit_leaves_the_unet_unchanged(backbone: Backbone, stored: Path) -> None:
    record = (stored / RECORD).read_text().replace('"rank": 2', '"rank": 4')
    (stored / RECORD).write_text(record)
    with pytest.raises(UserError, match=r"do not fit this LoRA: .*lora_A.weight is 2 x 8 instead of 4 x 8"):
        attach_lora(backbone, read_lora(stored), str(stored))
    assert not any("lora" in name for name, _ in backbone.unet.named_modules())
