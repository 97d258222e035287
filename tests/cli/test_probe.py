"""`dpt probe` on an untrained adapter: its files and its refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from dpt.adapter import Adapter, config_for
from dpt.adapter.io import save_adapter
from dpt.backbone import open_backbone
from dpt.cli.main import run
from dpt.errors import UserError
from dpt.lora import Lora, LoraConfig
from dpt.lora.io import save_lora
from tests import tiny_models

ROOT = Path(__file__).parents[2]
SMALL = {"hidden_dim": 16, "nheads": 2, "dim_feedforward": 32, "num_queries_matching": 3, "num_queries_rec": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tiny_models.POCKET, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    backbone, folder = open_backbone(model, device="cpu"), tmp_path_factory.mktemp("adapters")
    for feature in ("bottom0", "up0"):
        torch.manual_seed(0)
        width = backbone.text_width
        built = Adapter(config_for(backbone, feature, width, text_encoder_type="backbone", **SMALL))
        save_adapter(built, folder / feature, base="tiny", base_hash=backbone.model_hash)
    return [str(folder / feature) for feature in ("bottom0", "up0")]


def command(model: Path, adapters: list[str], out: Path, *words: str) -> list[str]:
    fixed = ["--pretrained_model_name_or_path", str(model), "--timesteps", "20", "500", "--num", "6"]
    return ["probe", *adapters, *fixed, "--out", str(out), *words]


def test_probe_writes_counts_tables_and_a_plot(
    model: Path, adapters: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(command(model, adapters, tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert [entry["name"] for entry in record["adapters"]] == ["bottom0", "up0"]
    for entry in record["adapters"]:
        counts = {"itm_txt": 0, "itm_img": 0, "rec": 0, "rec_kind": 0}
        for cell in entry["cells"]:
            counts[cell["question"]] += cell["asked"]
        assert counts == {"itm_txt": 12, "itm_img": 12, "rec": 12, "rec_kind": 12}
    tables = (tmp_path / "out" / "table.md").read_text()
    assert tables in capsys.readouterr().out and "| bottom0 |" in tables
    assert Image.open(tmp_path / "out" / "probe.png").width > 500
    first = (tmp_path / "out" / "probe.json").read_bytes()
    run(command(model, adapters, tmp_path / "again"))
    assert (tmp_path / "again" / "probe.json").read_bytes() == first


def test_lora_is_applied_for_its_adapter_only(model: Path, adapters: list[str], tmp_path: Path) -> None:
    backbone, tuned = open_backbone(model, device="cpu"), tmp_path / "tuned"
    shutil.copytree(adapters[1], tuned / "adapter")
    lora = Lora(backbone, LoraConfig(rank=2))
    for name, weights in lora.weights.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights)
    save_lora(lora.state(), lora.config, tuned / "lora", base_hash=backbone.model_hash)
    run(command(model, [str(tuned), adapters[1], str(tuned / "adapter")], tmp_path / "out", "--num", "40"))
    with_lora, bare, bare_again = json.loads((tmp_path / "out" / "probe.json").read_text())["adapters"]
    assert [entry["name"] for entry in (with_lora, bare, bare_again)] == ["up0, tuned", "up0", "up0"]
    assert bare["cells"] == bare_again["cells"] != with_lora["cells"]
    tuned, before = with_lora["denoising"]
    assert tuned > 0 < before != tuned
    assert bare["denoising"] is None
    assert f"| up0, tuned | {before:.4f} | {tuned:.4f} |" in (tmp_path / "out" / "table.md").read_text()


def test_folder_without_an_adapter_is_refused(model: Path, tmp_path: Path) -> None:
    backbone = open_backbone(model, device="cpu")
    lora = Lora(backbone, LoraConfig(rank=2))
    save_lora(lora.state(), lora.config, tmp_path / "lora", base_hash=backbone.model_hash)
    with pytest.raises(UserError, match="holds no adapter"):
        run(command(model, [str(tmp_path / "lora")], tmp_path / "out"))


def test_probe_reads_data_folders_in_the_published_layout(model: Path, adapters: list[str], tmp_path: Path) -> None:
    run(command(model, adapters[:1], tmp_path, "--data_root", str(ROOT / "data" / "sample")))
    cells = json.loads((tmp_path / "probe.json").read_text())["adapters"][0]["cells"]
    assert {cell["sort"] for cell in cells if cell["question"] == "rec"} == {
        "refcoco:val", "refcoco+:val", "refcocog:val",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--timesteps", "20"], "--headline 500 is not among the --timesteps"),
        (["--timesteps", "500", "1000"], "--timesteps are between 0 and 999, not 1000"),
        (["--num", "0"], "--num must be at least 1, not 0"),
        (["--data_root", "nowhere"], "there is no data folder nowhere"),
        (["--data_root", str(ROOT / "data" / "sample"), "--datasets", "refcoco:tset"], "finetune_refcoco_tset.json"),
    ],
)
def test_invalid_input_is_refused(
    model: Path, adapters: list[str], tmp_path: Path, words: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        run(command(model, adapters, tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()


def test_adapter_of_another_model_is_refused(adapters: list[str], tmp_path: Path) -> None:
    other = tiny_models.save(tiny_models.POCKET, tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="was trained to read another model, tiny"):
        run(command(other, adapters, tmp_path / "out"))
