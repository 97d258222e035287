"""Open checkpoints, attach them to their model, and refuse them on others."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpt.adapter.io import save_adapter
from dpt.backbone import Backbone, open_backbone
from dpt.checkpoints import open_checkpoint
from dpt.cli.main import run
from dpt.errors import UserError, run_command
from dpt.lora import LoraConfig
from dpt.lora.io import read_lora, save_lora
from tests import tiny_models
from tests.adapter.test_store import Payload
from tests.checkpoints.making import SCALED, published_lora, tiny_adapter, tiny_result, write
from tests.faults.disks import run_in_a_child
from tests.lora.test_injection import filled


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return open_backbone(tiny_models.save(tiny_models.SD2_BASE, tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture
def result(backbone: Backbone, tmp_path: Path) -> Path:
    return tiny_result(backbone, tmp_path / "trained")


def untouched(backbone: Backbone) -> bool:
    return not any("lora" in name for name, _ in backbone.unet.named_modules())


def test_result_and_its_parts_open(backbone: Backbone, result: Path) -> None:
    whole, adapter, lora = (open_checkpoint(result / part) for part in ("", "adapter", "lora"))
    assert [opened.kind for opened in (whole, adapter, lora)] == ["native"] * 3
    assert whole.adapter and whole.adapter_record and whole.lora
    assert whole.adapter_record.base_hash == whole.lora.record.base_hash == backbone.model_hash
    assert (adapter.adapter is None, adapter.lora is None) == (False, True)
    assert (lora.adapter is None, lora.lora is None) == (True, False)
    assert [file.name for file in whole.files] == ["adapter.safetensors", "lora.safetensors"]


def test_checkpoint_attaches_to_its_model(backbone: Backbone, result: Path) -> None:
    checkpoint = open_checkpoint(result)
    lora = checkpoint.attach(backbone)
    assert lora and lora.config == SCALED and checkpoint.lora
    assert all(torch.equal(tensor, checkpoint.lora.tensors[name]) for name, tensor in lora.state().items())
    lora.remove()
    assert open_checkpoint(result / "adapter").attach(backbone) is None
    assert untouched(backbone)


def test_another_base_is_refused(backbone: Backbone, result: Path, tmp_path: Path) -> None:
    other = open_backbone(tiny_models.save(tiny_models.SD2_BASE, tmp_path / "other", seed=1), device="cpu")
    with pytest.raises(UserError, match=r"the adapter .* was trained to read another model, tiny \(its hash"):
        open_checkpoint(result).attach(other)
    with pytest.raises(UserError, match=r"the LoRA .*lora was trained in another model, tiny"):
        open_checkpoint(result / "lora").attach(other)
    assert untouched(other)


def test_another_feature_or_width_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    narrow = open_backbone(tiny_models.save(tiny_models.SD1, tmp_path / "sd1"), device="cpu")
    save_adapter(tiny_adapter(backbone), tmp_path / "a")
    with pytest.raises(UserError, match=r"matches text 32 wide, and the text encoder writes 24"):
        open_checkpoint(tmp_path / "a").check_belongs(narrow)
    for folder, feature in (("b", "up3"), ("c", "up7")):
        adapter = tiny_adapter(backbone)
        adapter.config = replace(adapter.config, unet_feature=feature)
        save_adapter(adapter, tmp_path / folder)
    with pytest.raises(UserError, match=r"it reads up3 with 16 channels, and the model's has 8"):
        open_checkpoint(tmp_path / "b").check_belongs(backbone)
    with pytest.raises(UserError, match="there is no UNet feature 'up7'"):
        open_checkpoint(tmp_path / "c").check_belongs(backbone)


def test_lora_of_another_shape_leaves_the_unet_unchanged(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pytorch_model.bin do not fit this LoRA"):
        open_checkpoint(write(tmp_path, published_lora())).attach(backbone)
    assert untouched(backbone)


def test_adapter_and_lora_of_different_models_are_refused(backbone: Backbone, result: Path) -> None:
    stored = read_lora(result / "lora")
    for file in (result / "lora").iterdir():
        file.unlink()
    save_lora(stored.tensors, stored.record.config, result / "lora", base_hash="another")
    with pytest.raises(UserError, match="were trained in different models"):
        open_checkpoint(result)


def test_record_that_contradicts_its_tensors_is_refused(backbone: Backbone, result: Path, tmp_path: Path) -> None:
    stored = read_lora(result / "lora")

    def saved(name: str, tensors: dict[str, Tensor], config: LoraConfig = SCALED) -> Path:
        save_lora(tensors, config, tmp_path / name)
        return tmp_path / name

    with pytest.raises(UserError, match=r"has rank 3, and its record says 7$"):
        open_checkpoint(saved("a", stored.tensors, LoraConfig(rank=7)))
    with pytest.raises(UserError, match=r"holds what no LoRA of attention layers has: conv_in$"):
        open_checkpoint(saved("b", stored.tensors | {"conv_in.lora_A.weight": torch.zeros(3, 4)}))
    with pytest.raises(UserError, match=r"is not whole: it lacks"):
        open_checkpoint(saved("c", dict(list(stored.tensors.items())[1:])))
    with pytest.raises(UserError, match=r"holds no LoRA$"):
        open_checkpoint(saved("d", {}))


@pytest.mark.parametrize("part", ["adapter", "lora"])
def test_damaged_files_are_detected(result: Path, part: str) -> None:
    file = result / part / f"{part}.safetensors"
    whole = bytearray(file.read_bytes())
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{part}.safetensors is damaged: .*SHA-256 differs"):
            open_checkpoint(result)
    file.unlink()
    with pytest.raises(UserError, match=rf"has no {part}.safetensors"):
        open_checkpoint(result)


def test_command_ends_with_one_sentence_and_exit_code_2(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (result / "lora" / "lora.safetensors").write_bytes(b"nothing")
    (tmp_path / "text.safetensors").write_text("nothing")
    half = {key: tensor for key, tensor in published_lora().items() if ".up." in key}
    bad = {
        result: "lora.safetensors is damaged",
        write(tmp_path / "a", published_lora() | {"unet.run": Payload()}): "holds more than tensors",
        write(tmp_path / "b", half): "it lacks",
        tmp_path / "text.safetensors": "is truncated or not a safetensors file",
        tmp_path / "nowhere": "there is no checkpoint",
    }
    before = sorted(tmp_path.rglob("*"))
    for path, message in bad.items():
        assert run_command(partial(run, ["export", str(path), "--out", str(tmp_path / "out")])) == 2
        caught = capsys.readouterr()
        assert caught.out == ""
        assert message in caught.err and caught.err.startswith("error: ") and caught.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_pickle_code_is_not_executed(tmp_path: Path) -> None:
    write(tmp_path / "in", published_lora() | {"unet.run": Payload()})
    command = ["export", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    code, printed = run_in_a_child(lambda: os._exit(run_command(partial(run, command))))
    assert code == 2 and printed.startswith("error: ") and printed.count("\n") == 1
    assert "holds more than tensors" in printed and "this must never run" not in printed
    assert not (tmp_path / "out").exists()


def test_blocks_without_a_lora_are_named(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For files that do not record their blocks; a dpt file that records `down` is complete."""
    lora = filled(backbone, LoraConfig(2, blocks=("down", "up")))
    tensors = lora.state()
    lora.remove()
    save_lora(tensors, LoraConfig(2, blocks=("down", "up")), tmp_path / "own")
    open_checkpoint(tmp_path / "own").attach(backbone).remove()
    save_file({f"unet.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "other.safetensors")
    with pytest.warns(UserWarning, match=r"other.safetensors has no LoRA for the blocks mid of the model: they stay"):
        open_checkpoint(tmp_path / "other.safetensors").attach(backbone).remove()
    run(["info", str(tmp_path / "other.safetensors")])
    assert re.search(r"no lora in +mid\n", capsys.readouterr().out)


@pytest.mark.parametrize("part", ["adapter", "lora"])
def test_non_finite_weights_are_refused(result: Path, part: str) -> None:
    file = result / part / f"{part}.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, file)
    record = file.with_suffix(".json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "weights_sha256": ""}))
    with pytest.raises(UserError, match=rf"{part}.safetensors holds NaN or infinite weights, in {name}: its training"):
        open_checkpoint(result)
