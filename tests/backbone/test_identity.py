"""Which folders hold the same model."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpt.backbone import identity, open_backbone
from dpt.backbone.folder import SCHEDULER, TEXT_ENCODER, TOKENIZER, UNET, VAE, ModelFolder
from dpt.backbone.identity import file_hash, hash_as_recorded, is_model, model_hash
from dpt.checkpoints import open_checkpoint
from dpt.errors import UserError
from dpt.lora import Lora, LoraConfig
from dpt.lora.io import save_lora
from tests import tiny_models

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder.check(tiny_models.save(tiny_models.POCKET, tmp_path_factory.mktemp("original") / "model"))


@pytest.fixture
def copied(original: ModelFolder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original.path, tmp_path / "copied"))


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def resave(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt", "saved by": "another version"})


def test_copy_saved_by_another_library_version_is_the_same_model(original: ModelFolder, copied: Path) -> None:
    edit(copied / "unet/config.json", lambda c: c.update(_diffusers_version="9.9", _name_or_path="x", new_key=1))
    edit(copied / "unet/config.json", lambda c: c.update(norm_eps=1e-5, dropout=0.0))  # written out, at their defaults
    edit(copied / "unet/config.json", lambda c: c.pop("class_embed_type", None))
    edit(
        copied / "text_encoder/config.json", lambda c: c.update(torch_dtype="float32", architectures=["CLIPTextModel"])
    )
    edit(
        copied / "scheduler/scheduler_config.json", lambda c: c.update(_class_name="PNDMScheduler", skip_prk_steps=True)
    )

    def older_names(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"text_model.{name.removeprefix('text_model.')}"] = tensors.pop(name)
        tensors["text_model.embeddings.position_ids"] = torch.arange(24)[None]

    resave(copied / "text_encoder/model.safetensors", older_names)
    resave(copied / "unet/diffusion_pytorch_model.safetensors", lambda tensors: None)
    resaved = ModelFolder.check(copied)
    assert file_hash(resaved) != file_hash(original)
    assert model_hash(resaved) == model_hash(original)


CHANGES: dict[str, Callable[[Path], None]] = {
    "a weight": lambda p: resave(
        p / "unet/diffusion_pytorch_model.safetensors", lambda t: next(iter(t.values())).flatten()[:1].add_(1e-3)
    ),
    "vae scaling": lambda p: edit(p / "vae/config.json", lambda c: c.update(scaling_factor=0.8)),
    "prediction type": lambda p: edit(
        p / "scheduler/scheduler_config.json", lambda c: c.update(prediction_type="epsilon")
    ),
    "activation": lambda p: edit(p / "text_encoder/config.json", lambda c: c.update(hidden_act="gelu")),
    "vocabulary": lambda p: edit(
        p / "tokenizer/tokenizer.json", lambda c: c["model"]["vocab"].update({"zz": len(c["model"]["vocab"])})
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_the_output_changes_the_identity(change: str, original: ModelFolder, copied: Path) -> None:
    CHANGES[change](copied)
    changed = ModelFolder(copied)
    parts = (TOKENIZER, TEXT_ENCODER, VAE, UNET, SCHEDULER)
    assert model_hash(changed) != model_hash(original)
    assert sum(model_hash(changed, part) != model_hash(original, part) for part in parts) == 1


def test_hashes_of_earlier_versions_are_accepted(original: ModelFolder, copied: Path) -> None:
    old, new = file_hash(original), model_hash(original)
    assert old != new and is_model(old, original) and is_model(new, original) and is_model("", original)
    assert not is_model("0" * 64, original)
    assert hash_as_recorded(old, original) == old
    assert hash_as_recorded("0" * 64, original) == hash_as_recorded(None, original) == new
    assert hash_as_recorded(file_hash(original, VAE), original, VAE) == file_hash(original, VAE)


def test_shipped_checkpoints_belong_to_the_pocket_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    backbone = open_backbone(ROOT / "ckpt/pocket", device="cpu")
    for name in ("pocket-stage1", "pocket-dpt"):
        checkpoint = open_checkpoint(ROOT / "ckpt" / name)
        recorded = checkpoint.adapter_record.base_hash if checkpoint.adapter_record else ""
        assert recorded == file_hash(backbone.folder)
        checkpoint.check_belongs(backbone)
    assert not recwarn.list


def test_another_base_is_refused_unless_allowed(original: ModelFolder, tmp_path: Path) -> None:
    backbone = open_backbone(original.path, device="cpu")
    lora = Lora(backbone, LoraConfig(rank=2))
    save_lora(lora.state(), lora.config, tmp_path / "lora", base="another/model", base_hash="0" * 64)
    lora.remove()
    checkpoint = open_checkpoint(tmp_path / "lora")
    with pytest.raises(UserError, match=r"was trained in another model, another/model .* pass --allow_other_base"):
        checkpoint.attach(backbone)
    with pytest.warns(UserWarning, match="used all the same, because of --allow_other_base"):
        assert checkpoint.attach(backbone, allow_other_base=True)


def test_hash_is_cached_until_a_file_changes(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPT_CACHE_DIR", str(tmp_path / "cache"))
    computed: list[str] = []
    original = identity._component_hash
    monkeypatch.setattr(identity, "_component_hash", lambda folder, c: computed.append(c.name) or original(folder, c))
    folder, config = ModelFolder.check(copied), copied / "vae/config.json"
    monkeypatch.setattr(identity, "SETTLED", 600.0)
    for file in copied.rglob("*"):
        file.touch()
    fresh = model_hash(folder)
    assert len(computed) == 5 and not (tmp_path / "cache").exists(), "files this new may change without a trace"
    earlier = time.time() - 3600
    for file in copied.rglob("*"):
        os.utime(file, (earlier, earlier))
    assert model_hash(folder) == fresh and len(computed) == 10
    assert model_hash(folder) == model_hash(ModelFolder.check(copied)) == fresh and len(computed) == 10
    config.write_text(config.read_text().replace("0.7", "0.8"))  # the same size
    assert model_hash(folder) != fresh and computed[10:] == ["vae"]
    for memo in (tmp_path / "cache/model-hashes").iterdir():
        memo.write_text("{")
    config.write_text(config.read_text().replace("0.8", "0.7"))
    assert model_hash(folder) == fresh
