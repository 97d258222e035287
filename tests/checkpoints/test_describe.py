"""`dpt info` describes each kind of checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpt.backbone import Backbone, open_backbone
from dpt.cli.main import run
from dpt.errors import UserError
from tests import tiny_models
from tests.checkpoints.making import published_adapter, published_lora, tiny_result, write


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return open_backbone(tiny_models.save(tiny_models.POCKET, tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def result(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_result(backbone, tmp_path_factory.mktemp("result") / "trained")


@pytest.fixture
def info(capsys: pytest.CaptureFixture[str]) -> Any:
    def run_info(path: Path) -> tuple[str, dict[str, Any]]:
        capsys.readouterr()
        run(["info", str(path)])
        text = capsys.readouterr().out
        run(["info", str(path), "--json"])
        return text, json.loads(capsys.readouterr().out)

    return run_info


def test_info_describes_adapter_and_lora(backbone: Backbone, result: Path, info: Any) -> None:
    text, values = info(result)
    adapter, lora = values["adapter"], values["lora"]
    assert adapter["unet_feature"] == "up1" and adapter["queries"] == {"matching": 10, "grounding": 5}
    assert adapter["nheads"] == 8 and adapter["tensors"] == 56 and adapter["assumed"] == []
    assert (lora["rank"], lora["alpha"], lora["blocks"]) == (3, 2.0, ["all"])
    assert lora["tensors"] == 2 * lora["projections"]
    for part in (adapter, lora):
        about = (part["base"], part["base_hash"], part["prediction_type"])
        assert about == ("tiny", backbone.model_hash, "v_prediction")
    files = {Path(file_entry["file"]).name: file_entry for file_entry in values["files"]}
    assert set(files) == {"adapter.safetensors", "lora.safetensors"}
    for file_entry in files.values():
        assert (
            file_entry["bytes"] == Path(file_entry["file"]).stat().st_size
            and file_entry["checksum"] == "verified (SHA-256)"
        )
    for line in ("alpha            2\n", "queries            10 matching, 5 grounding\n", backbone.model_hash):
        assert line in text


def test_info_describes_the_published_file(tmp_path: Path, info: Any) -> None:
    text, values = info(write(tmp_path, published_adapter() | published_lora()).parent)
    assert values["format"] == "published"
    assert (values["adapter"]["tensors"], values["adapter"]["values"]) == (56, 4_369_029)
    assert (values["lora"]["tensors"], values["lora"]["values"]) == (256, 829_952)
    assert (values["lora"]["rank"], values["lora"]["alpha"], values["lora"]["blocks"]) == (4, 4, ["all"])
    assert values["adapter"]["base"] is None
    assert [file_entry["checksum"] for file_entry in values["files"]] == ["verified (CRC-32)"]
    assert "up1 (assumed: the file does not say)" in text and "not recorded" in text and "4,369,029" in text


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_info_describes_lora_files(result: Path, tmp_path: Path, info: Any, form: str) -> None:
    out = tmp_path / ("lora.safetensors" if form == "kohya" else "folder")
    run(["export", str(result), "--format", form, "--out", str(out)])
    _, values = info(out)
    assert "adapter" not in values and values["format"] == form
    assert (values["lora"]["rank"], values["lora"]["alpha"], values["lora"]["base"]) == (3, 2.0, "tiny")
    assert [file_entry["checksum"] for file_entry in values["files"]] == ["verified (SHA-256)"]


def test_info_describes_a_model(backbone: Backbone, info: Any) -> None:
    text, values = info(backbone.folder.path)
    assert values["model"]["hash"] == backbone.model_hash and values["model"]["prediction_type"] == "v_prediction"
    assert values["model"]["unet_features"] == ["bottom0", "bottom1", "bottom2", "mid", "up0", "up1", "up2"]
    assert values["model"]["text_width"] == 16
    assert len(values["files"]) == 3 and "model in the diffusers layout" in text


def test_other_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        run(["info", str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="holds no checkpoint"):
        run(["info", str(tmp_path)])
