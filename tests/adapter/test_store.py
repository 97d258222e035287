"""Saving and reading adapters: the native folder and the published file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpt.adapter import AdapterConfig
from dpt.adapter.io import RECORD, WEIGHTS, config_of, load_adapter, load_published, read_published, save_adapter
from dpt.adapter.model import PretrainedPhraseEncoder
from dpt.errors import UserError
from tests import tiny_roberta
from tests.adapter.test_model import inputs, small
from tests.golden.recipe import recipe_weights
from tests.golden.reference import FULL, key_shapes

LORA = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_q_lora"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    save_adapter(small(), tmp_path / "adapter", base="pocket", base_hash="abc", prediction_type="v_prediction")
    return tmp_path / "adapter"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    lora = {f"{LORA}.down.weight": torch.zeros(4, 1280), f"{LORA}.up.weight": torch.zeros(1280, 4)}
    return write(tmp_path, recipe_weights(key_shapes()) | lora)


def write(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def test_saved_adapter_is_read_back(stored: Path) -> None:
    adapter, record = load_adapter(stored)
    assert sorted(file.name for file in stored.iterdir()) == [RECORD, WEIGHTS]
    assert (record.base, record.base_hash, record.prediction_type) == ("pocket", "abc", "v_prediction")
    assert not adapter.training
    assert torch.equal(adapter(*inputs()).matching, small()(*inputs()).matching)
    assert torch.equal(adapter.logit_scale, small().logit_scale)


def test_trained_text_encoder_is_read_back(tmp_path: Path) -> None:
    roberta, adapter = PretrainedPhraseEncoder.open(tiny_roberta.save(tmp_path / "roberta")), small()
    with torch.no_grad():
        roberta.encoder.embeddings.word_embeddings.weight.add_(1.0)
    adapter.text_encoder = roberta
    save_adapter(adapter, tmp_path / "adapter")
    assert load_file(tmp_path / "adapter" / WEIGHTS).keys() == small().state_dict().keys()
    opened, record = load_adapter(tmp_path / "adapter")
    assert opened.text_encoder is not None and len(record.text_encoder_sha256) == 64
    assert torch.equal(opened.text_encoder.encode(["a star"]).states, roberta.encode(["a star"]).states)
    assert not any(p.requires_grad for p in opened.text_encoder.parameters())
    weights = tmp_path / "adapter" / "text_encoder" / "model.safetensors"
    shutil.copy(tmp_path / "roberta" / weights.name, weights)
    with pytest.raises(UserError, match="not the text encoder that was trained with the adapter"):
        load_adapter(tmp_path / "adapter")
    weights.unlink()
    with pytest.raises(UserError, match="text encoder that was trained with the adapter is missing"):
        load_adapter(tmp_path / "adapter")


def test_folder_in_use_is_not_written_to(stored: Path) -> None:
    with pytest.raises(UserError, match="is not an empty folder"):
        save_adapter(small(), stored)


def test_broken_folder_is_refused_in_one_sentence(stored: Path) -> None:
    weights = load_file(stored / WEIGHTS)
    save_file({key: value for key, value in weights.items() if key != "logit_scale"}, stored / WEIGHTS)
    with pytest.raises(UserError, match=r"adapter.safetensors is damaged: .*SHA-256 differs"):
        load_adapter(stored)
    record = json.loads((stored / RECORD).read_text())
    (stored / RECORD).write_text(json.dumps({**record, "weights_sha256": ""}))
    with pytest.raises(UserError, match=r"adapter.safetensors do not fit the adapter: logit_scale is missing$"):
        load_adapter(stored)
    save_file(weights | {"more": torch.zeros(1)}, stored / WEIGHTS)
    with pytest.raises(UserError, match="more is left over"):
        load_adapter(stored)
    save_file(weights | {"input_proj.bias": torch.zeros(7)}, stored / WEIGHTS)
    with pytest.raises(UserError, match=r"input_proj.bias is 7 instead of 32"):
        load_adapter(stored)
    (stored / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(UserError, match="truncated or not a safetensors file"):
        load_adapter(stored)
    (stored / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"has no adapter.safetensors"):
        load_adapter(stored)


def test_broken_record_is_refused_in_one_sentence(stored: Path) -> None:
    record = json.loads((stored / RECORD).read_text())
    (stored / RECORD).write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(UserError, match="has format 2; this version of dpt reads format 1"):
        load_adapter(stored)
    (stored / RECORD).write_text(json.dumps(record | {"shape": 2}))
    with pytest.raises(UserError, match="unknown key 'shape'"):
        load_adapter(stored)
    (stored / RECORD).unlink()
    with pytest.raises(UserError, match=r"cannot read .*adapter.json"):
        load_adapter(stored)


def test_published_file_is_read(published: Path) -> None:
    adapter, lora = load_published(published)
    assert adapter.config == AdapterConfig()
    expected = recipe_weights(key_shapes())
    assert all(torch.equal(value, expected[key]) for key, value in adapter.state_dict().items())
    assert set(lora) == {f"{LORA}.{part}.weight".removeprefix("unet.") for part in ("down", "up")}
    assert set(read_published(published.parent).adapter) == set(expected)


def test_whole_published_layout_is_read(tmp_path: Path) -> None:
    if not FULL:
        pytest.skip("DPT_GOLDEN does not name the folder with all reference values")
    shapes = json.loads((Path(FULL) / "keys_stage2_full.json").read_text())
    adapter, lora = load_published(write(tmp_path, {key: torch.zeros(shape) for key, shape in shapes.items()}))
    assert len(shapes) == 312
    assert len(lora) == 256
    assert sum(value.numel() for value in lora.values()) == 829_952
    assert len(adapter.state_dict()) == 56


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pre_norm": True, "enc_layers": 2, "dec_layers": 3},
        {"position_embedding": "learned", "position_rows": 60},
        {"contrastive_align_loss": False},
        {"unet_feature": "all-10-4", "feature_channels": [6, 4, 8], "fused_channels": 10},
    ],
    ids=str,
)
def test_shape_is_inferred_from_the_tensors(changes: dict[str, Any]) -> None:
    adapter = small(**changes)
    config = config_of(adapter.state_dict(), "test", adapter.config.unet_feature, 3, 4)
    unseen = {"text_encoder_type": adapter.config.text_encoder_type}
    if not adapter.config.contrastive_align_loss:
        unseen |= {"phrase_width": 12, "contrastive_loss_hdim": 8}
    assert type(config)(**{**vars(config), **unseen}) == adapter.config


def test_fused_maps_need_a_size() -> None:
    fused = small(unet_feature="all-10-4", feature_channels=[6, 4, 8], fused_channels=10)
    with pytest.raises(UserError, match="say to which size, as all-10-SIDE"):
        config_of(fused.state_dict(), "test")


def without(tensors: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name != key}


def test_published_file_with_wrong_shapes_is_refused(tmp_path: Path) -> None:
    weights = recipe_weights(key_shapes())
    with pytest.raises(UserError, match=r"do not fit the adapter: class_embed.bias is missing$"):
        load_published(write(tmp_path, without(weights, "class_embed.bias")))
    with pytest.raises(UserError, match=r"is not a published adapter: it has no tensor query_embed.weight"):
        load_published(write(tmp_path, without(weights, "query_embed.weight")))
    with pytest.raises(UserError, match=r"module.logit_scale is left over"):
        load_published(write(tmp_path, weights | {"module.logit_scale": torch.zeros(())}))
    with pytest.raises(UserError, match="trained with its own text encoder"):
        load_published(write(tmp_path, weights | {"text_encoder.pooler.bias": torch.zeros(2)}))
    with pytest.raises(UserError, match=r"input_proj.weight is 256 x 1280 x 1 x 1 instead of 256 x 640 x 1 x 1"):
        load_published(write(tmp_path, weights), AdapterConfig("up2", (640,)))
    with pytest.raises(UserError, match="holds no adapter"):
        load_published(write(tmp_path, {f"{LORA}.up.weight": torch.zeros(1)}))


class Payload:
    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


def test_file_that_is_not_a_dict_of_tensors_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="holds more than tensors"):
        load_published(write(tmp_path, {"logit_scale": Payload()}))
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="is not a flat list of named tensors"):
        load_published(write(tmp_path, [1, 2]))
    file = write(tmp_path, recipe_weights(key_shapes()))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="was not read: it is truncated"):
        load_published(file)
    file.unlink()
    with pytest.raises(UserError, match="there is no published checkpoint"):
        load_published(file)
