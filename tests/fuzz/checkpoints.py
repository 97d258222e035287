"""Parsers of records, weights, training states and logs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from dpt.adapter import Adapter, AdapterConfig
from dpt.adapter.io import FILE_NAME as PUBLISHED
from dpt.adapter.io import RECORD as ADAPTER
from dpt.adapter.io import WEIGHTS as ADAPTER_WEIGHTS
from dpt.adapter.io import save_adapter
from dpt.checkpoints import open_checkpoint
from dpt.checkpoints.open import describe, format_summary
from dpt.lora import LoraConfig
from dpt.lora.formats.common import attention_targets
from dpt.lora.formats.diffusers import write_diffusers
from dpt.lora.formats.kohya import write_kohya
from dpt.lora.formats.published import to_published
from dpt.lora.io import RECORD as LORA
from dpt.lora.io import WEIGHTS as LORA_WEIGHTS
from dpt.lora.io import LoraRecord, StoredLora, save_lora
from dpt.pocket.training import RECIPE_FILE, Recipe
from dpt.records import read_record
from dpt.score.preference import read_openai_weights, to_transformers
from dpt.training.engine import run_folder
from dpt.training.engine.logging import read_log
from tests.fuzz.containers import compressed, mutate_header, mutate_member
from tests.fuzz.data_files import HOSTILE_JSON, JSON_MUTATIONS, LINE_MUTATIONS, file_parser
from tests.fuzz.mutations import mutate_bytes
from tests.fuzz.parser import Parser, Target

SMALL = AdapterConfig(
    feature_channels=(8,),
    text_width=8,
    phrase_width=8,
    hidden_dim=8,
    nheads=2,
    dim_feedforward=8,
    position_rows=4,
    num_queries_matching=2,
    num_queries_rec=2,
    token_slots=4,
    contrastive_loss_hdim=4,
    position_embedding="learned",
)
HEADERS = (mutate_header, mutate_header, mutate_bytes)
HOSTILE_HEADERS = (
    b"",
    b"\x00" * 8,
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f{}",
    (2).to_bytes(8, "little") + b"{}",
    (2**40).to_bytes(8, "little") + b"{" * 100,
    (20_000).to_bytes(8, "little") + b"[" * 20_000,
    *(
        (len(one)).to_bytes(8, "little") + one + bytes(64)
        for one in (
            b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}',
            b'{"a":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0]}}',
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}',
            b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},"b":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
            b'{"__metadata__":{"format":"pt","dpt_lora":"' + b"[" * 20_000 + b'"}}',
            b'{"lora_unet_x":{"dtype":"F8_E4M3","shape":[64],"data_offsets":[0,64]}}',
            b'{"lora_unet_x":{"dtype":"F4","shape":[128],"data_offsets":[0,64]}}',
            b'{"unet.mid_block.attentions.99.transformer_blocks.99.attn1.to_q.lora.down.weight":'
            b'{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}',
            b'{"unet.mid_block.attentions.999999999.transformer_blocks.999999999.attn1.to_q.lora.down.weight":'
            b'{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}',
        )
    ),
)


def small_lora() -> StoredLora:
    torch.manual_seed(0)
    tensors = {}
    for place in attention_targets("mid_block", 0, 0):
        tensors[f"{place}.lora_A.weight"] = torch.randn(2, 4)
        tensors[f"{place}.lora_B.weight"] = torch.randn(4, 2)
    return StoredLora(LoraRecord(LoraConfig(2, 3.0, ("mid",)), "tiny", "ab" * 32, "epsilon"), tensors)


def small_adapter() -> Adapter:
    torch.manual_seed(0)
    return Adapter(SMALL)


def summary_of(path: Path) -> str:
    return format_summary(describe(open_checkpoint(path)))


def adapter_record(folder: Path) -> Target:
    save_adapter(small_adapter(), folder / "adapter", base="tiny")
    file = folder / "adapter" / ADAPTER
    return Target(file, [file.read_bytes()], lambda: summary_of(folder))


def adapter_weights(folder: Path) -> Target:
    """Without the checksum, which would refuse every change."""
    save_adapter(small_adapter(), folder / "adapter")
    record = folder / "adapter" / ADAPTER
    record.write_text(json.dumps({**json.loads(record.read_text()), "weights_sha256": ""}))
    file = folder / "adapter" / ADAPTER_WEIGHTS
    return Target(file, [file.read_bytes()], lambda: summary_of(folder))


def lora_record(folder: Path) -> Target:
    lora = small_lora()
    save_lora(lora.tensors, lora.record.config, folder / "lora")
    file = folder / "lora" / LORA
    return Target(file, [file.read_bytes()], lambda: summary_of(folder))


def lora_weights(folder: Path) -> Target:
    lora = small_lora()
    save_lora(lora.tensors, lora.record.config, folder / "lora")
    record = folder / "lora" / LORA
    record.write_text(json.dumps({**json.loads(record.read_text()), "weights_sha256": ""}))
    file = folder / "lora" / LORA_WEIGHTS
    return Target(file, [file.read_bytes()], lambda: summary_of(folder))


def foreign_lora(write: Callable[[StoredLora, Path, str], None]) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        file = folder / "some.safetensors"
        write(small_lora(), file, "it")
        whole = file.read_bytes()
        size = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + size])
        header["__metadata__"].pop("dpt_lora")  # its checksum would refuse every change
        without_record = json.dumps(header).encode()
        return Target(
            file,
            [whole, len(without_record).to_bytes(8, "little") + without_record + whole[8 + size :]],
            lambda: summary_of(file),
        )

    return make


def published(folder: Path) -> Target:
    torch.manual_seed(0)
    file, samples = folder / PUBLISHED, []
    shape = replace(SMALL, num_queries_matching=AdapterConfig.num_queries_matching, nheads=AdapterConfig.nheads)
    adapter = {name: tensor.clone() for name, tensor in Adapter(shape).state_dict().items()}
    for content in (adapter | to_published(small_lora(), "it"), to_published(small_lora(), "it")):
        for modern in (True, False):
            torch.save(content, file, _use_new_zipfile_serialization=modern)
            samples.append(file.read_bytes())
    return Target(file, samples, lambda: summary_of(file))


def mutate_archive(content: bytes, rng: Any) -> bytes:
    if not content.startswith(b"PK"):
        return mutate_bytes(content, rng)
    return rng.choice((mutate_member, mutate_member, compressed, mutate_bytes))(content, rng)  # type: ignore[no-any-return]


def run_of_training(folder: Path) -> Path:
    tensors = {"model": {"w": torch.ones(4)}, "optimizer": {"m": torch.zeros(4)}}
    return run_folder.save(folder, 5, tensors, {"seed": 1, "epoch": 0, "rates": [0.1, 0.2]})


def manifest(folder: Path) -> Target:
    saved = run_of_training(folder)

    def read() -> None:
        run_folder.newest_good(folder)
        run_folder.load(saved)

    return Target(saved / run_folder.MANIFEST, [(saved / run_folder.MANIFEST).read_bytes()], read)


def with_right_manifest(name: str) -> Callable[[Path], Target]:
    """With a matching manifest, since an attacker can change both."""

    def make(folder: Path) -> Target:
        saved = run_of_training(folder)
        file = saved / name

        def read() -> None:
            facts = json.loads(manifest_before)
            content = file.read_bytes()
            facts[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            (saved / run_folder.MANIFEST).write_text(json.dumps(facts))
            run_folder.load(saved)

        manifest_before = (saved / run_folder.MANIFEST).read_text()
        return Target(file, [file.read_bytes()], read)

    return make


CONFIG = {
    "seed": 1337,
    "learning_rate": 1e-4,
    "name": "run",
    "cache": None,
    "blocks": ["all"],
    "model": {"a": [1, 2.5]},
}
LOG = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in (
        {"step": 10, "images": 160, "loss": 0.7, "lr": 1e-4},
        {"step": 10, "validation": {"itm": 0.5}},
        {"step": 20, "images": 320, "loss": 0.6, "lr": 1e-4},
    )
)


def _claim(folder: Path) -> None:
    with run_folder.claimed(folder, run_folder.RunConfig(CONFIG)):
        pass


def run_config(folder: Path) -> Target:
    file = folder / run_folder.CONFIG
    return Target(file, [json.dumps(CONFIG).encode()], lambda: _claim(folder))


def run_log(folder: Path) -> Target:
    file = folder / run_folder.LOG

    def read() -> None:
        read_log(folder)
        run_folder.rewind(folder, 10)

    return Target(file, [LOG], read)


def openai_clip(folder: Path) -> Target:
    """A preference classifier with OpenAI's names, reduced to a few tensors."""
    file = folder / "hpc.pth"
    weights = {
        "logit_scale": torch.tensor(4.6),
        "visual.conv1.weight": torch.ones(4, 3, 2, 2),
        "visual.proj": torch.ones(4, 2),
        "visual.transformer.resblocks.0.attn.in_proj_weight": torch.ones(12, 4),
    }
    samples = []
    for content in (weights, {"state_dict": weights}):
        torch.save(content, file)
        samples.append(file.read_bytes())
    return Target(file, samples, lambda: to_transformers(read_openai_weights(file), file.name))


NOT_FLAT = save({"x": torch.ones(2)})
PARSERS = (
    file_parser("record: recipe", RECIPE_FILE, lambda file: read_record(Recipe, file)),
    Parser("record: adapter", adapter_record, JSON_MUTATIONS, HOSTILE_JSON),
    Parser("record: LoRA", lora_record, JSON_MUTATIONS, HOSTILE_JSON),
    Parser("record: configuration of a run", run_config, JSON_MUTATIONS, HOSTILE_JSON),
    Parser("log of a run", run_log, LINE_MUTATIONS, HOSTILE_JSON),
    Parser("weights: adapter", adapter_weights, HEADERS, HOSTILE_HEADERS),
    Parser("weights: LoRA", lora_weights, HEADERS, HOSTILE_HEADERS),
    Parser("weights: LoRA of diffusers", foreign_lora(write_diffusers), HEADERS, HOSTILE_HEADERS),
    Parser("weights: LoRA of kohya", foreign_lora(write_kohya), HEADERS, HOSTILE_HEADERS),
    Parser("weights: published checkpoint", published, (mutate_archive,), (b"", b"PK", b"\x80\x02", NOT_FLAT)),
    Parser("weights: CLIP with OpenAI's names", openai_clip, (mutate_archive,), (b"", b"PK", b"\x80\x02", NOT_FLAT)),
    Parser("checkpoint: manifest", manifest, JSON_MUTATIONS, HOSTILE_JSON),
    Parser("checkpoint: state", with_right_manifest("state.json"), JSON_MUTATIONS, HOSTILE_JSON),
    Parser("checkpoint: tensors", with_right_manifest("model.safetensors"), HEADERS, HOSTILE_HEADERS),
)
