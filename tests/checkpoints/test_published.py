"""The published file at its real shapes is read completely or refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpt.adapter import Adapter, AdapterConfig
from dpt.checkpoints import open_checkpoint
from dpt.errors import UserError
from dpt.lora import Lora, LoraConfig
from tests.adapter.test_store import Payload
from tests.checkpoints.making import published_adapter, published_lora, write
from tests.golden.reference import FULL
from tests.tiny_models import BareUNet

FIRST = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
LAST = "up_blocks.3.attentions.2.transformer_blocks.0"


def real_unet(text_width: int) -> Any:
    """Of Stable Diffusion 2.1 or 1.4, without its weights."""
    from diffusers import UNet2DConditionModel

    newer = {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            cross_attention_dim=text_width,
            **(newer if text_width == 1024 else {"attention_head_dim": 8}),
        )


@pytest.mark.parametrize(("text_width", "values"), [(1024, 5_198_981), (768, 5_100_421)], ids=["2.1", "1.4"])
def test_whole_published_file_is_read(tmp_path: Path, text_width: int, values: int) -> None:
    content = published_adapter(text_width) | published_lora(text_width)
    assert (len(content), sum(tensor.numel() for tensor in content.values())) == (312, values)
    checkpoint = open_checkpoint(write(tmp_path, content).parent)
    assert checkpoint.adapter and checkpoint.adapter_record and checkpoint.lora
    assert checkpoint.adapter_record.config == AdapterConfig(text_width=text_width)
    assert not checkpoint.adapter.training
    assert all(torch.equal(tensor, content[key]) for key, tensor in checkpoint.adapter.state_dict().items())
    assert checkpoint.lora.record.config == LoraConfig(4, None, ("all",)) and checkpoint.lora.record.config.scale == 1
    place = "down_blocks.2.attentions.1.transformer_blocks.0.attn2"
    key = f"unet.{place}.processor.to_out_lora"
    assert torch.equal(checkpoint.lora.tensors[f"{place}.to_out.0.lora_A.weight"], content[f"{key}.down.weight"])
    assert torch.equal(checkpoint.lora.tensors[f"{place}.to_out.0.lora_B.weight"], content[f"{key}.up.weight"])
    with torch.device("meta"):
        lora = Lora(BareUNet(real_unet(text_width)), checkpoint.lora.record.config)
    assert lora.load({name: tensor.to("meta") for name, tensor in checkpoint.lora.tensors.items()}, "here") == 256


def test_keys_equal_those_of_the_reference() -> None:
    if not FULL:
        pytest.skip("DPT_GOLDEN does not name the folder with all reference values")
    shapes = json.loads((Path(FULL) / "keys_stage2_full.json").read_text())
    written = published_adapter() | published_lora()
    assert {key: list(tensor.shape) for key, tensor in written.items()} == shapes


def test_checkpoint_of_another_model_size_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path, published_lora(768)))
    assert checkpoint.adapter is None and checkpoint.lora
    with torch.device("meta"):
        lora = Lora(BareUNet(real_unet(1024)), checkpoint.lora.record.config)
    with pytest.raises(UserError, match=r"do not fit this LoRA: .*to_k.lora_A.weight is 4 x 768 instead of 4 x 1024"):
        lora.load({name: tensor.to("meta") for name, tensor in checkpoint.lora.tensors.items()}, "here")


@pytest.mark.parametrize("rank", [1, 16])
def test_rank_is_inferred_from_the_tensors(tmp_path: Path, rank: int) -> None:
    checkpoint = open_checkpoint(write(tmp_path, published_lora(rank=rank)))
    assert checkpoint.lora and checkpoint.lora.record.config == LoraConfig(rank, None, ("all",))


def test_half_precision_files_are_converted_to_float32(tmp_path: Path) -> None:
    content = published_lora() | published_adapter()
    checkpoint = open_checkpoint(write(tmp_path, {key: tensor.half() for key, tensor in content.items()}))
    assert checkpoint.lora and checkpoint.adapter
    assert {tensor.dtype for tensor in (*checkpoint.lora.tensors.values(), *checkpoint.adapter.parameters())} == {
        torch.float32
    }


def test_stage_1_file_has_no_lora(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path, published_adapter()))
    assert checkpoint.adapter and checkpoint.lora is None


def drop(*endings: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda named: {key: tensor for key, tensor in named.items() if not any(ending in key for ending in endings)}


def put(key: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda named: named | {key: tensor}


DOWN = f"{FIRST}.down.weight"
FAR = f"{FIRST.replace('ons.0', 'ons.9999999999')}.up.weight"
EMPTY = lambda named: {key: t[:0] if ".down." in key else t[:, :0] for key, t in named.items()}  # noqa: E731
FAULTS = {
    "half a pair": (drop(f"{FIRST}.up"), r"is not whole: it lacks down_blocks.0.*attn1.to_q.lora_B.weight$"),
    "a projection": (drop(f"{LAST}.attn2.processor.to_v"), rf"it lacks {LAST}.attn2.to_v.lora_A.weight, .*_B.weight$"),
    "an attention layer": (drop("mid_block.attentions.0.transformer_blocks.0.attn1"), "_A.weight and 5 more$"),
    "the first of a block": (drop("up_blocks.3.attentions.0"), "lacks up_blocks.3.attentions.0.* and 13 more$"),
    "the last of a block": (drop("up_blocks.3.attentions.2"), "lacks up_blocks.3.attentions.2$"),
    "another rank": (put(DOWN, torch.zeros(2, 320)), "more than one rank.*: 2 in .*to_q.lora_A.weight, 4 in"),
    "no matrix": (put(DOWN, torch.zeros(4)), "is not one of matrices: .*to_q.lora_A.weight is 4$"),
    "rank nought": (EMPTY, "is of rank 0"),
    "an unknown key": (put("unet.conv_in.weight", torch.zeros(1)), "no LoRA of attention layers has: conv_in.weight$"),
    "a new key": (put(f"{FIRST}.alpha", torch.zeros(())), "no LoRA of attention layers has: .*to_q_lora.alpha$"),
    "integers": (put(DOWN, torch.zeros(4, 320).int()), "more than plain floating-point numbers"),
    "a far number": (put(FAR, torch.zeros(320, 4)), "no LoRA of attention layers has: .*9999999999"),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_incomplete_lora_is_refused_in_one_sentence(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(write(tmp_path, change(published_lora())))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


ADAPTER_FAULTS = {
    "query_embed.weight": [torch.ones(()), torch.ones(5, 256), torch.ones(0, 256)],
    "input_proj.weight": [torch.ones(256), torch.ones(12000, 1, 1, 1)],
    "transformer.decoder.layers.0.linear1.weight": [torch.ones(())],
    "map_to_clip.2.weight": [torch.ones(())],
    "class_embed.weight": [torch.ones(()), torch.ones(1, 256)],
    "contrastive_align_projection_text.weight": [torch.ones(64)],
}


@pytest.mark.parametrize("name", ADAPTER_FAULTS)
def test_adapter_tensor_of_wrong_shape_is_named_before_allocation(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(config: AdapterConfig) -> Adapter:
        assert torch.get_default_device().type == "meta", "7.5 GB for an adapter 12,000 wide"
        return Adapter(config)

    monkeypatch.setattr("dpt.adapter.io.Adapter", built)
    for tensor in ADAPTER_FAULTS[name]:
        file = write(tmp_path, published_adapter() | {name: tensor})
        with pytest.raises(UserError) as caught:
            open_checkpoint(file)
        sentence = str(caught.value)
        assert str(file) in sentence and "\n" not in sentence
        assert name in sentence or "token_slots must be at least 1, not 0" in sentence


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["class_embed.weight", "logit_scale", f"{FIRST}.up.weight"])
def test_non_finite_weights_are_refused_on_open(tmp_path: Path, name: str, value: float) -> None:
    content = published_adapter() | published_lora()
    content[name] = content[name].clone()
    content[name].view(-1)[-1] = value
    with pytest.raises(UserError, match=rf"holds NaN or infinite weights, in {name}: its training diverged or"):
        open_checkpoint(write(tmp_path, content))


def test_files_that_are_no_checkpoint_are_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no checkpoint: there is none of adapter/adapter.json, lora/lora.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(UserError, match="holds no tensors"):
        open_checkpoint(write(tmp_path, {}))
    with pytest.raises(UserError, match="holds more than tensors"):
        open_checkpoint(write(tmp_path, published_lora() | {"unet.more": Payload()}))
    assert capsys.readouterr().out == ""


def test_damaged_file_is_detected(tmp_path: Path) -> None:
    file = write(tmp_path, published_lora())
    whole = bytearray(file.read_bytes())
    for cut in (len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="was not read: it is truncated"):
            open_checkpoint(file)
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    with pytest.raises(UserError, match=r"is damaged: .* in it is not what was saved"):
        open_checkpoint(file)
