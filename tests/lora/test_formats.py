"""LoRA files of other programs are read, or refused in one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpt.checkpoints import open_checkpoint
from dpt.errors import UserError
from dpt.lora import LoraConfig
from dpt.lora.formats.common import stable_diffusion_targets
from dpt.lora.formats.diffusers import write_diffusers
from dpt.lora.formats.kohya import kohya_name, module_of, write_kohya
from dpt.lora.io import LoraRecord, StoredLora
from tests import tiny_models

TARGET = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
KOHYA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def stored() -> StoredLora:
    """As small as the names allow, with different sizes."""
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for place in stable_diffusion_targets():
        tensors[f"{place}.lora_A.weight"] = torch.randn(2, 5, generator=rng)
        tensors[f"{place}.lora_B.weight"] = torch.randn(3, 2, generator=rng)
    return StoredLora(LoraRecord(LoraConfig(2, 0.1), "some model", "abc", "epsilon"), tensors)


@pytest.fixture
def kohya(tmp_path: Path) -> Path:
    write_kohya(stored(), tmp_path / "kohya.safetensors", "here")
    return tmp_path / "kohya.safetensors"


@pytest.fixture
def diffusers(tmp_path: Path) -> Path:
    write_diffusers(stored(), tmp_path / "pytorch_lora_weights.safetensors", "here")
    return tmp_path / "pytorch_lora_weights.safetensors"


def without_record(file: Path, change: Change = dict, **metadata: str) -> Path:
    """The file without dpt's record, as another program would have written it."""
    save_file(change(load_file(file)), file, metadata=metadata or None)
    return file


def drop(part: str) -> Change:
    return lambda named: {key: tensor for key, tensor in named.items() if part not in key}


def put(key: str, tensor: Tensor) -> Change:
    return lambda named: named | {key: tensor}


def with_alpha(alpha: float) -> Change:
    return lambda named: {
        key: torch.tensor(alpha) if key.endswith("alpha") else tensor for key, tensor in named.items()
    }


def rename(old: str, new: str) -> Change:
    return lambda named: {key.replace(old, new): tensor for key, tensor in named.items()}


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


@pytest.mark.parametrize(
    "place",
    [TARGET, TARGET.replace("to_q", "to_out.0"), "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_v"],
)
def test_unet_names_round_trip(place: str) -> None:
    name = kohya_name("unet", place)
    assert name.startswith("lora_unet_") and "." not in name
    assert module_of(name) == ("unet", place)


@pytest.mark.parametrize("module", ["encoder.layers.11.self_attn.out_proj", "text_model.encoder.layers.0.mlp.fc1"])
def test_text_encoder_names_have_the_prefix_of_stable_diffusion_1_and_2(module: str) -> None:
    name = kohya_name("text_encoder", module)
    assert name.startswith("lora_te_text_model_encoder_layers_")
    assert module_of(name) == ("text_encoder", f"text_model.{module.removeprefix('text_model.')}")
    assert module_of(name.replace("lora_te_", "lora_te1_")) == module_of(name)
    assert module_of(name.replace("lora_te_", "lora_te3_")) is None


def test_diffusers_reads_our_text_encoder_names(tmp_path: Path) -> None:
    pipe: Any = tiny_models.pipeline(tiny_models.SD1)
    modules = [f"encoder.layers.1.self_attn.{projection}_proj" for projection in ("q", "k", "v", "out")]

    def weights() -> dict[str, Tensor]:
        encoder = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
        return {module: encoder.get_submodule(module).weight.detach().clone() for module in modules}

    expected, named = weights(), {}
    for module in modules:
        a, b = torch.randn(2, 24), torch.randn(24, 2)
        expected[module] += 0.5 * b @ a
        parts = {"lora_down.weight": a, "lora_up.weight": b, "alpha": torch.tensor(1.0)}
        named |= {f"{kohya_name('text_encoder', module)}.{part}": tensor for part, tensor in parts.items()}
    save_file(named, tmp_path / "text.safetensors")
    pipe.load_lora_weights(tmp_path / "text.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for module, weight in weights().items():
        torch.testing.assert_close(weight, expected[module], atol=1e-6, rtol=0)


def test_alpha_is_preserved_exactly(kohya: Path, diffusers: Path) -> None:
    for file in (kohya, diffusers):
        lora = open_checkpoint(file).lora
        assert lora and lora.record.config == LoraConfig(2, 0.1)
        assert (lora.record.base, lora.record.base_hash) == ("some model", "abc")
        assert all(torch.equal(tensor, lora.tensors[name]) for name, tensor in stored().tensors.items())


def test_exported_base_name_has_no_local_path(tmp_path: Path) -> None:
    source = stored()
    for base, expected in (("/home/someone/models/sd", "sd"), ("ckpt/pocket", "ckpt/pocket"), ("", "")):
        file = tmp_path / f"of {expected.replace('/', '-')}.safetensors"
        write_kohya(replace(source, record=replace(source.record, base=base)), file, "here")
        lora = open_checkpoint(file).lora
        assert lora and lora.record.base == expected


def test_files_of_other_programs_are_read(kohya: Path, diffusers: Path) -> None:
    lora = open_checkpoint(without_record(kohya)).lora
    assert lora and lora.record == LoraRecord(LoraConfig(2, float(torch.tensor(0.1)), ("all",)))
    lora = open_checkpoint(without_record(kohya, drop(".alpha"))).lora
    assert lora and lora.record.config == LoraConfig(2, None, ("all",))
    message = json.dumps({"unet.r": 2, "unet.lora_alpha": 8, "unet.init_lora_weights": True, "text_encoder.r": 9})
    lora = open_checkpoint(without_record(diffusers, lora_adapter_metadata=message)).lora
    assert lora and lora.record.config == LoraConfig(2, 8.0, ("all",))
    lora = open_checkpoint(without_record(diffusers)).lora
    assert lora and lora.record.config == LoraConfig(2, None, ("all",))


def test_all_diffusers_spellings_are_read(diffusers: Path) -> None:
    tensors = stored().tensors
    for change in (
        lambda named: rename(".lora.down.", ".lora_A.")(rename(".lora.up.", ".lora_B.")(named)),
        lambda named: {
            key.replace(".to_", ".processor.to_").replace("out.0", "out").replace(".lora.", "_lora."): tensor
            for key, tensor in named.items()
        },
    ):
        respelled = diffusers.with_name("again.safetensors")
        save_file(change(load_file(diffusers)), respelled)
        lora = open_checkpoint(respelled).lora
        assert lora and all(torch.equal(tensor, lora.tensors[name]) for name, tensor in tensors.items())


TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
TEXT_ONLY = {f"{kohya_name('text_encoder', TEXT)}.lora_down.weight": torch.zeros(2, 5)}
LACKS = r"is not whole: it lacks mid_block.attentions.0.transformer_blocks.0.attn2.to_q.lora"
KOHYA_FAULTS = {
    "half a pair": (drop(f"{KOHYA}.lora_up"), rf"{LACKS}_B.weight$"),
    "a projection": (drop(KOHYA), rf"{LACKS}_A.weight, .*lora_B.weight$"),
    "a convolution": (put("lora_unet_mid_block_resnets_0_conv1.alpha", torch.zeros(1)), "no LoRA of attention lay"),
    "other names": (rename("mid_block", "middle_block"), "no LoRA of attention layers has: lora_unet_middle_block"),
    "an unknown part": (put(f"{KOHYA}.dora_scale", torch.zeros(1)), r"no LoRA of attention layers .*_q.dora_scale$"),
    "no LoRA": (put("conv_in.weight", torch.zeros(1)), "no LoRA of attention layers has: conv_in.weight$"),
    "two ranks": (put(f"{KOHYA}.lora_down.weight", torch.zeros(1, 5)), "more than one rank"),
    "two alphas": (put(f"{KOHYA}.alpha", torch.tensor(8.0)), r"more than one alpha.*: .*8 in mid_block"),
    "an alpha missing": (
        drop(f"{KOHYA}.alpha"),
        r"has the alpha of some projections only; it lacks .*attn2.to_q.alpha$",
    ),
    "no number": (put(f"{KOHYA}.alpha", torch.tensor(float("nan"))), "alpha that is not a positive number: mid_block"),
    "a complex alpha": (put(f"{KOHYA}.alpha", torch.tensor(1j)), "alpha that is not a positive number: mid_block"),
    "several numbers": (put(f"{KOHYA}.alpha", torch.ones(2)), "alpha that is not a positive number: mid_block"),
    "integers": (put(f"{KOHYA}.lora_up.weight", torch.zeros(3, 2).int()), "lora_B.weight is of type int32$"),
    "booleans": (put(f"{KOHYA}.lora_up.weight", torch.zeros(3, 2).bool()), "lora_B.weight is of type bool$"),
    "complex": (put(f"{KOHYA}.lora_up.weight", torch.zeros(3, 2).cfloat()), "lora_B.weight is of type complex64$"),
    "NaN": (
        put(f"{KOHYA}.lora_up.weight", torch.full((3, 2), math.nan)),
        "NaN or infinite weights, in .*lora_B.weight",
    ),
    "infinity": (put(f"{KOHYA}.lora_down.weight", torch.full((2, 5), math.inf)), "NaN or infinite weights, in "),
    "a huge alpha": (with_alpha(1e30), "alpha of a LoRA of rank 2 must be at most 20000, not 1e\\+30"),
    "a text encoder": (put("lora_te_text_model_x.alpha", torch.zeros(1)), "no LoRA of attention layers has: lora_te_"),
    "half a text layer": (
        put("lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", torch.zeros(3, 2)),
        "is not whole: it lacks text_encoder_2.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    ),
    "only text encoders": (lambda named: TEXT_ONLY, "changes text encoders only"),
    "a fifth wheel": (drop("up_blocks_1_attentions_0"), r"it lacks up_blocks.1.attentions.0"),
}


@pytest.mark.parametrize(("change", "message"), KOHYA_FAULTS.values(), ids=KOHYA_FAULTS.keys())
def test_unsupported_kohya_files_are_refused(kohya: Path, change: Change, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(without_record(kohya, change))
    assert "\n" not in str(caught.value) and str(kohya) in str(caught.value)


DIFFUSERS = f"unet.{TARGET}"
DIFFUSERS_FAULTS = {
    "half a pair": (drop(f"{DIFFUSERS}.lora.up"), {}, rf"{LACKS}_B.weight$"),
    "an unknown key": (put("unet.conv_in.lora.up.weight", torch.zeros(1)), {}, "no LoRA of attention .*: unet.conv"),
    "the same twice": (put(f"{DIFFUSERS}.lora_A.weight", torch.zeros(2, 5)), {}, "holds .*to_q.lora_A.weight twice"),
    "a text encoder": (put("text_encoder.x.lora.up.weight", torch.zeros(1)), {}, "no LoRA of attention .*: text_enc"),
    "two scales": (
        put(f"text_encoder.{TEXT}.lora_A.weight", torch.zeros(2, 5)),
        {"unet.lora_alpha": 1, "text_encoder.lora_alpha": 2},
        "has more than one alpha",
    ),
    "another rank message": (dict, {"unet.r": 5}, "has rank 5 in its metadata and 2 in its tensors"),
    "alpha is a word": (dict, {"unet.lora_alpha": "big"}, "has 'big' as its lora_alpha, which is not a number"),
    "alpha is nought": (dict, {"unet.lora_alpha": 0}, "alpha of a LoRA must be positive, not 0"),
    "a huge alpha": (dict, {"unet.lora_alpha": 1e300}, r"must be at most 20000, not 1e\+300"),
    "ranks by place": (dict, {"unet.rank_pattern": {"x": 1}}, "of a kind that dpt does not support.*rank_pattern"),
    "another scale": (dict, {"unet.use_rslora": True}, "of a kind that dpt does not support.*use_rslora"),
    "not an object": (dict, [], "lora_adapter_metadata is not valid JSON"),
}


@pytest.mark.parametrize(
    ("change", "metadata_entries", "message"), DIFFUSERS_FAULTS.values(), ids=DIFFUSERS_FAULTS.keys()
)
def test_unsupported_diffusers_files_are_refused(
    diffusers: Path, change: Change, metadata_entries: Any, message: str
) -> None:
    metadata = {} if metadata_entries == {} else {"lora_adapter_metadata": json.dumps(metadata_entries)}
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(without_record(diffusers, change, **metadata))
    assert "\n" not in str(caught.value) and str(diffusers) in str(caught.value)


def test_damaged_files_are_detected(kohya: Path, diffusers: Path) -> None:
    for file in (kohya, diffusers):
        whole = bytearray(file.read_bytes())
        file.write_bytes(whole[:-9])
        with pytest.raises(UserError, match="is truncated or not a safetensors file"):
            open_checkpoint(file)
        whole[-9] ^= 16
        file.write_bytes(whole)
        with pytest.raises(UserError, match=r"is damaged: .* not those that were exported"):
            open_checkpoint(file)


def test_record_that_contradicts_the_file_is_refused(kohya: Path) -> None:
    metadata, record = metadata_of(kohya), json.loads(metadata_of(kohya)["dpt_lora"])
    for changes, message in (
        ({"config": {"rank": 2, "alpha": 3.0, "blocks": ["all"]}}, "contradicts itself: its alpha is 0.1, and .* 3$"),
        ({"config": {"rank": 4, "alpha": 0.1, "blocks": ["all"]}}, "contradicts itself: its rank is 2, and .* 4$"),
        ({"color": 1}, "unknown key 'color'"),
        ({"format": 2}, "format 2; this version of dpt reads format 1"),
    ):
        save_file(load_file(kohya), kohya, metadata={**metadata, "dpt_lora": json.dumps(record | changes)})
        with pytest.raises(UserError, match=message):
            open_checkpoint(kohya)
    save_file(load_file(kohya), kohya, metadata={**metadata, "dpt_lora": "{"})
    with pytest.raises(UserError, match="is not valid JSON"):
        open_checkpoint(kohya)


def test_other_safetensors_are_refused_in_one_sentence(tmp_path: Path, diffusers: Path) -> None:
    with pytest.raises(UserError, match=r"is not a LoRA file that dpt supports: it holds weight$"):
        open_checkpoint(without_record(diffusers, lambda _: {"weight": torch.zeros(1)}))
    with pytest.raises(UserError, match=r"is not a LoRA file that dpt supports: it is empty$"):
        open_checkpoint(without_record(diffusers, lambda _: {}))
    (tmp_path / "adapter.json").touch()
    save_file({"logit_scale": torch.zeros(())}, tmp_path / "adapter.safetensors")
    with pytest.raises(UserError, match="is part of a checkpoint: give its folder"):
        open_checkpoint(tmp_path / "adapter.safetensors")
