"""Exports give every program the same weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dpt.adapter import Adapter
from dpt.adapter.io import save_adapter
from dpt.backbone import Backbone, open_backbone
from dpt.backbone.unet_features import lora_targets
from dpt.checkpoints import Checkpoint, open_checkpoint
from dpt.cli.main import run
from dpt.errors import UserError, run_command
from dpt.lora import LoraConfig
from dpt.lora.formats.common import read_lora_file
from tests import tiny_models
from tests.checkpoints.making import SCALED, published_adapter, published_lora, tiny_adapter, tiny_result, write
from tests.faults.disks import can_mount, mount_memory, own_mounts, run_in_a_child

MODELS = {"sd1": tiny_models.SD1, "sd2": tiny_models.SD2_BASE, "pocket": tiny_models.POCKET}
OUT = {"diffusers": "exported", "kohya": "exported.safetensors", "published": "exported"}
FORMATS = sorted(OUT)


@pytest.fixture(scope="module", params=MODELS)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tiny_models.save(MODELS[request.param], tmp_path_factory.mktemp("model"))
    return open_backbone(folder, device="cpu")


@pytest.fixture(scope="module")
def result(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_result(backbone, tmp_path_factory.mktemp("result") / "trained")


def exported(result: Path, form: str, folder: Path) -> Path:
    out = folder / OUT[form]
    run(["export", str(result), "--format", form, "--out", str(out)])
    return out


def merged_by_hand(checkpoint: Checkpoint, unet: Any) -> dict[str, Tensor]:
    """W + (alpha / rank) B A, in double precision."""
    assert checkpoint.lora
    config, tensors = checkpoint.lora.record.config, checkpoint.lora.tensors
    weights = {}
    for place in lora_targets(unet, ["all"]):
        a, b = tensors[f"{place}.lora_A.weight"].double(), tensors[f"{place}.lora_B.weight"].double()
        weights[place] = unet.get_submodule(place).weight.double() + config.scale * (b @ a)
    return weights


def largest_difference(expected: dict[str, Tensor], unet: Any) -> float:
    return max(
        float((unet.get_submodule(place).weight.detach().double() - weight.detach()).abs().max())
        for place, weight in expected.items()
    )


@pytest.fixture
def pipe(backbone: Backbone) -> Any:
    """Stock diffusers, with nothing of ours."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(backbone.folder.path, safety_checker=None)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_stock_diffusers_merges_the_same_weights(
    backbone: Backbone, result: Path, pipe: Any, form: str, tmp_path: Path
) -> None:
    expected = merged_by_hand(open_checkpoint(result), backbone.unet)
    assert largest_difference(expected, pipe.unet) > 1e-2
    pipe.load_lora_weights(exported(result, form, tmp_path))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert largest_difference(expected, pipe.unet) <= 1e-6


def test_stock_diffusers_merges_the_published_layout(
    backbone: Backbone, result: Path, pipe: Any, tmp_path: Path
) -> None:
    expected = merged_by_hand(open_checkpoint(result), backbone.unet)
    content = torch.load(exported(result, "published", tmp_path) / "pytorch_model.bin", weights_only=True)
    lora = {key: tensor for key, tensor in content.items() if key.startswith("unet.")}
    pipe.load_lora_into_unet(lora, network_alphas=None, unet=pipe.unet)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert largest_difference(expected, pipe.unet) <= 1e-6


@pytest.mark.parametrize("form", FORMATS)
def test_dpt_merges_the_same_weights(backbone: Backbone, result: Path, form: str, tmp_path: Path) -> None:
    expected = merged_by_hand(open_checkpoint(result), backbone.unet)
    original_weights = {place: backbone.unet.get_submodule(place).weight.clone() for place in expected}
    lora = open_checkpoint(exported(result, form, tmp_path)).attach(backbone)
    assert lora
    lora.merge()
    difference = largest_difference(expected, backbone.unet)
    for place, weight in original_weights.items():
        backbone.unet.get_submodule(place).weight.data.copy_(weight)
    assert difference <= 1e-6


@pytest.mark.parametrize("form", FORMATS)
def test_exported_lora_is_read_back(result: Path, form: str, tmp_path: Path) -> None:
    before, after = open_checkpoint(result).lora, open_checkpoint(exported(result, form, tmp_path)).lora
    assert before and after and set(before.tensors) == set(after.tensors)
    folded = SCALED.scale if form == "published" else 1
    for name, tensor in before.tensors.items():
        assert torch.equal(after.tensors[name], folded * tensor if "lora_B" in name else tensor)
    if form == "published":
        assert after.record.config.rank == after.record.config.resolved_alpha == 3
    else:
        assert after.record.config == SCALED
        assert (after.record.base, after.record.base_hash) == ("tiny", before.record.base_hash)
        assert after.record.prediction_type == before.record.prediction_type


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_conversion_between_formats_is_lossless(result: Path, form: str, tmp_path: Path) -> None:
    other = "kohya" if form == "diffusers" else "diffusers"
    there = exported(result, form, tmp_path / "there")
    back = exported(exported(there, other, tmp_path / "other"), form, tmp_path / "back")
    files = [path / "pytorch_lora_weights.safetensors" if path.is_dir() else path for path in (there, back)]
    for path, two in zip(*map(read_lora_file, files), strict=True):
        assert path.keys() == two.keys()
        assert all(torch.equal(v, two[k]) if isinstance(v, Tensor) else v == two[k] for k, v in path.items())


def test_exported_names_and_strength_follow_each_format(result: Path, tmp_path: Path) -> None:
    """Names and strength as the programs that read them look for them."""
    with safe_open(exported(result, "kohya", tmp_path), framework="pt") as file:
        names = set(file.keys())
        module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"
        assert {f"{module}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")} <= names
        assert {float(file.get_tensor(name)) for name in names if name.endswith(".alpha")} == {2.0}
        assert {"ss_network_dim": "3", "ss_network_alpha": "2", "ss_v2": "False"}.items() <= file.metadata().items()
        assert len(file.metadata()["sshs_model_hash"]) == 64
    written = exported(result, "diffusers", tmp_path) / "pytorch_lora_weights.safetensors"
    with safe_open(written, framework="pt") as file:
        module = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
        assert {f"{module}.lora.down.weight", f"{module}.lora.up.weight"} <= set(file.keys())
        described = json.loads(file.metadata()["lora_adapter_metadata"])
        assert (described["unet.r"], described["unet.lora_alpha"]) == (3, 2)


def test_published_layout_equals_that_of_the_published_code(tmp_path: Path) -> None:
    content = published_adapter() | published_lora()
    back = exported(write(tmp_path / "in", content), "published", tmp_path)
    written = torch.load(back / "pytorch_model.bin", weights_only=True)
    assert set(written) == set(content)
    assert all(torch.equal(written[key], content[key]) and written[key].dtype == torch.float32 for key in content)


@pytest.mark.parametrize(("text_width", "second"), [(1024, "True"), (768, "False")])
def test_kohya_file_states_the_base_model_version_for_a1111(tmp_path: Path, text_width: int, second: str) -> None:
    file = exported(write(tmp_path / "in", published_lora(text_width)), "kohya", tmp_path)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["ss_v2"] == second
        assert len(opened.keys()) == 3 * 128


def test_notes_name_what_the_format_cannot_store(
    backbone: Backbone, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(result, "published", tmp_path / "a")
    message = capsys.readouterr().out
    assert "the scale alpha / rank = 2 / 3 was multiplied into the `up` matrices" in message
    exported(result, "kohya", tmp_path / "b")
    message = capsys.readouterr().out
    assert "rank 3, alpha 2" in message and "the adapter was not exported" in message
    odd = tiny_adapter(backbone, "up0", num_queries_matching=3, num_queries_rec=4, text_encoder_type="backbone")
    save_adapter(odd, tmp_path / "odd")
    exported(tmp_path / "odd", "published", tmp_path / "c")
    message = capsys.readouterr().out
    assert "cannot say that unet_feature is 'up0', not 'up1', text_encoder_type is 'backbone'" in message
    assert "num_queries_matching is 3, not 10" in message


def test_lora_in_some_blocks_is_exported(backbone: Backbone, tmp_path: Path) -> None:
    config = LoraConfig(rank=2, alpha=6.0, blocks=("down", "mid"))
    part = tiny_result(backbone, tmp_path / "part", config)
    for form in FORMATS:
        lora = open_checkpoint(exported(part, form, tmp_path / form)).attach(backbone)
        assert lora and set(lora.targets) == set(backbone.lora_targets(["down", "mid"]))
        lora.remove()


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_overwritten(result: Path, form: str, tmp_path: Path) -> None:
    out = exported(result, form, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"already exists.*nothing was written"):
        exported(result, form, tmp_path)
    assert out.exists() and {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_invalid_options_are_refused_in_one_sentence(result: Path, tmp_path: Path) -> None:
    for form, out, message in (
        ("kohya", "folder", "--out must end in .safetensors"),
        ("diffusers", "file.safetensors", "is a folder with pytorch_lora_weights.safetensors in it"),
        ("published", "file.bin", "is a folder with pytorch_model.bin in it"),
    ):
        with pytest.raises(UserError, match=message):
            run(["export", str(result), "--format", form, "--out", str(tmp_path / out)])
    with pytest.raises(
        UserError, match=r"the format kohya is for LoRAs, and .* has only an adapter: use --format published"
    ):
        exported(result / "adapter", "kohya", tmp_path)
    assert not list(tmp_path.iterdir())


def test_failed_export_leaves_nothing(result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dpt.lora.formats.common.write_weights", full)
    monkeypatch.setattr("torch.save", full)
    for form in FORMATS:
        with pytest.raises(UserError, match="cannot be written: No space left"):
            exported(result, form, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def full_disk(folder: Path, result: Path) -> None:
    own_mounts()
    mount_memory(folder, 8)
    for format in FORMATS:
        words = ["export", str(result), "--format", format, "--out", str(folder / OUT[format])]
        assert run_command(partial(run, words)) == 2
        assert not list(folder.iterdir())
    record = open_checkpoint(result / "adapter").adapter_record
    assert record is not None
    assert run_command(lambda: save_adapter(Adapter(record.config), folder / "adapter")) == 2


def test_full_disk_is_one_sentence_and_leaves_nothing(result: Path, tmp_path: Path) -> None:
    """A real disk of 8 KiB, since each library reports the error differently."""
    if not can_mount():
        pytest.skip("needs root or a user namespace to mount a disk")
    code, output = run_in_a_child(lambda: full_disk(tmp_path, result))
    assert code == 0, output
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 4 and "Traceback" not in output, output
    assert all("No space left on device" in line for line in lines), output
