"""A broken model folder is refused in one sentence that names the fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpt.backbone import open_backbone
from dpt.errors import UserError
from tests import tiny_models

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tiny_models.POCKET, tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "model"))


def remove(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        target = folder / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


def truncate(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def edit_config(name: str, **changes: object) -> Callable[[Path], None]:
    """Set keys of a JSON file, or drop them where the new value is None."""

    def change(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        config.update(changes)
        remaining = {key: value for key, value in config.items() if value is not None}
        (folder / name).write_text(json.dumps(remaining))

    return change


def shards(*names: object) -> Callable[[Path], None]:
    """As if the VAE's weights were in several files, which an index names."""

    def change(folder: Path) -> None:
        single = folder / "vae/diffusion_pytorch_model.safetensors"
        single.rename(folder.parent / "up.safetensors")
        index = {"weight_map": {f"tensor {number}": name for number, name in enumerate(names)}}
        single.with_name(f"{single.name}.index.json").write_text(json.dumps(index))

    return change


def edit_weights(name: str, edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / name)
        edit(weights)
        save_file(weights, folder / name, metadata={"format": "pt"})

    return change


def not_json(folder: Path) -> None:
    (folder / "unet/config.json").write_text("{")


BROKEN = {
    "no index": (remove("model_index.json"), "it has no model_index.json"),
    "no unet": (remove("unet"), "has no unet: the sub-folder is missing"),
    "no vae in the index": (edit_config("model_index.json", vae=None), "has no vae"),
    "wrong class": (
        edit_config("model_index.json", vae=["diffusers", "VQModel"]),
        "the vae of .* is a VQModel, not a AutoencoderKL",
    ),
    "no config": (remove("vae/config.json"), "has no vae/config.json"),
    "config not json": (not_json, "unet/config.json is not valid JSON"),
    "missing config key": (
        edit_config("unet/config.json", cross_attention_dim=None),
        "unet/config.json does not say cross_attention_dim",
    ),
    "missing beta": (
        edit_config("scheduler/scheduler_config.json", beta_start=None),
        "scheduler_config.json does not say beta_start",
    ),
    "unknown beta schedule": (
        edit_config("scheduler/scheduler_config.json", beta_schedule="steep"),
        "noise schedule cannot be built",
    ),
    "no weights": (remove(UNET), "the weights file .* is missing"),
    "truncated weights": (truncate(UNET), "unet.* is truncated or not a safetensors file"),
    "truncated text weights": (truncate(TEXT), "text_encoder.* is truncated or not a safetensors file"),
    "no tokenizer files": (remove("tokenizer/tokenizer.json"), "tokenizer .* is incomplete: vocab.json"),
    "truncated tokenizer": (truncate("tokenizer/tokenizer.json"), "the tokenizer in .* cannot be read"),
    "missing unet tensor": (
        edit_weights(UNET, lambda weights: weights.pop("conv_in.weight")),
        "missing tensor conv_in.weight",
    ),
    "missing text tensors": (
        edit_weights(TEXT, lambda weights: [weights.pop(key) for key in list(weights) if "final" in key]),
        "missing tensor .*final_layer_norm.bias and 1 more",
    ),
    "unexpected unet tensor": (
        edit_weights(UNET, lambda weights: weights.update(extra=torch.zeros(1))),
        "unexpected tensor extra",
    ),
    "unexpected text tensor": (
        edit_weights(TEXT, lambda weights: weights.update(extra=torch.zeros(1))),
        "unexpected tensor extra",
    ),
    "mismatched unet tensor": (
        edit_weights(UNET, lambda weights: weights.update({"conv_in.bias": torch.zeros(3)})),
        "conv_in.bias",
    ),
    "mismatched text tensor": (
        edit_weights(
            TEXT,
            lambda weights: weights.update({next(k for k in weights if "final" in k): torch.zeros(3)}),
        ),
        "text_encoder",
    ),
    "text does not fit unet": (
        edit_config("unet/config.json", cross_attention_dim=20),
        "the UNet reads text 20 wide, the text encoder writes 16",
    ),
    "widths that are no list": (
        edit_config("unet/config.json", block_out_channels=32),
        "block_out_channels should be a list, not 32",
    ),
    "an index that leads out": (shards("../../up.safetensors"), r"names '\.\./\.\./up\.safetensors', which is no file"),
    "an index that leads elsewhere": (shards("/etc/hostname"), "names '/etc/hostname', which is no file beside it"),
    "an index of a name too long": (shards("a" * 2000), "which is no file beside it"),
    "an index of no name": (shards(""), "names '', which is no file beside it"),
    "an index of something else": (shards(7), "names 7, which is no file beside it"),
    "an index of nothing": (shards(), "names no weights"),
    "a config nested too deep": (
        lambda folder: (folder / "unet/config.json").write_text("[" * 100_000) and None,
        "unet/config.json is not valid JSON",
    ),
    "inpainting model": (edit_config("unet/config.json", in_channels=9), "the UNet reads 9 channels"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folder_is_refused_in_one_sentence(case: str, folder: Path) -> None:
    break_it, sentence = BROKEN[case]
    break_it(folder)
    with pytest.raises(UserError, match=sentence) as caught:
        open_backbone(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_loading_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_backbone(folder, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_missing_path_is_refused() -> None:
    with pytest.raises(UserError, match="there is no model folder '/no/such/folder'"):
        open_backbone("/no/such/folder")


def test_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(UserError, match=r"model.ckpt is a file, not a model folder"):
        open_backbone(tmp_path / "model.ckpt")


def test_hub_id_without_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="someone/some-model is not on this machine, and HF_HUB_OFFLINE forbids"):
        open_backbone("someone/some-model")


def test_revision_of_a_folder_is_ignored_with_a_warning(folder: Path) -> None:
    with pytest.warns(UserWarning, match="revision 'main' is ignored"):
        open_backbone(folder, revision="main", device="cpu")


def test_older_text_encoder_and_tokenizer_layout_opens_the_same(folder: Path) -> None:
    """Published files name the tensors text_model.* and keep the vocabulary in vocab.json and merges.txt."""
    new = open_backbone(folder, device="cpu")
    model = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "tokenizer/merges.txt").write_text("\n".join(lines))
    weights = {
        f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(folder / TEXT).items()
    }
    length = new.prompt_length
    weights["text_model.embeddings.position_ids"] = torch.arange(length)[None]
    save_file(weights, folder / TEXT, metadata={"format": "pt"})
    old = open_backbone(folder, device="cpu")
    assert torch.equal(old.encode_text([tiny_models.PROMPT]).states, new.encode_text([tiny_models.PROMPT]).states)


@pytest.mark.parametrize(("dtype", "name"), [(torch.bool, "BOOL"), (torch.int32, "I32"), (torch.complex64, "C64")])
def test_weights_that_are_not_floating_point_are_refused(folder: Path, dtype: torch.dtype, name: str) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["quant_conv.weight"] = tensors["quant_conv.weight"].to(dtype)
    save_file(tensors, file)
    with pytest.raises(UserError, match=rf"does not hold floating-point weights: quant_conv.weight is of type {name}$"):
        open_backbone(folder, device="cpu")
