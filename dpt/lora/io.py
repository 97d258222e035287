"""A LoRA as a folder of its own: `lora.safetensors` beside `lora.json`, which says what it belongs to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dpt.backbone import Backbone
from dpt.backbone.identity import check_base
from dpt.errors import UserError
from dpt.files import atomic_folder
from dpt.lora.config import LoraConfig
from dpt.lora.injection import Lora
from dpt.records import read_record, to_plain
from dpt.weights import read_weights, write_weights

WEIGHTS, RECORD = "lora.safetensors", "lora.json"


@dataclass(frozen=True)
class LoraRecord:
    """What is known of a stored LoRA besides its weights."""

    config: LoraConfig
    base: str = ""
    """The model it was trained in, as it was named then."""
    base_hash: str = ""
    """That model's content hash."""
    prediction_type: str = ""
    weights_sha256: str = ""
    format: int = 1


@dataclass(frozen=True)
class StoredLora:
    record: LoraRecord
    tensors: dict[str, Tensor]
    """As `Lora.state` names them."""


def save_lora(
    tensors: dict[str, Tensor],
    config: LoraConfig,
    folder: Path,
    *,
    base: str = "",
    base_hash: str = "",
    prediction_type: str = "",
) -> None:
    """Write the folder, all or nothing; it must not hold anything yet."""
    with atomic_folder(folder) as work:
        digest = write_weights(tensors, work / WEIGHTS)
        record = LoraRecord(config, base, base_hash, prediction_type, digest)
        (work / RECORD).write_text(json.dumps(to_plain(record), indent=1) + "\n")


def read_lora(folder: Path) -> StoredLora:
    record = read_record(LoraRecord, folder / RECORD)
    if record.format != 1:
        raise UserError(f"{folder / RECORD} has format {record.format}; this version of dpt reads format 1")
    return StoredLora(record, read_weights(folder / WEIGHTS, record.weights_sha256))


def attach_lora(backbone: Backbone, stored: StoredLora, where: str, allow_other_base: bool = False) -> Lora:
    """Put a stored LoRA into the model it was trained in; another model only if allowed."""
    record = stored.record
    check_base(backbone, record, f"the LoRA {where} was trained in", allow_other_base)
    lora = Lora(backbone, record.config)
    try:
        lora.load(stored.tensors, where)
    except UserError:
        lora.remove()
        raise
    return lora
