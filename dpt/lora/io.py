"""A LoRA as a folder: `lora.safetensors`, and `lora.json` with its config and the model it belongs to."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dpt.backbone import Backbone
from dpt.backbone.identity import check_base
from dpt.backbone.unet_features import lora_architecture
from dpt.errors import UserError
from dpt.files import atomic_folder
from dpt.lora.injection import Lora, LoraConfig, is_text_target
from dpt.records import read_record, to_plain
from dpt.weights import check_numbers, read_weights, write_weights

WEIGHTS, RECORD = "lora.safetensors", "lora.json"


@dataclass(frozen=True)
class LoraRecord:
    """Config and origin of a stored LoRA."""

    config: LoraConfig
    base: str = ""
    """Name of the model it was trained in."""
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
    blocks_recorded: bool = True
    """Whether the file says which blocks have a LoRA; else they are those of its tensors."""


def save_lora(
    tensors: dict[str, Tensor],
    config: LoraConfig,
    folder: Path,
    *,
    base: str = "",
    base_hash: str = "",
    prediction_type: str = "",
) -> None:
    """Write the folder, completely or not at all; it must be empty or missing."""
    with atomic_folder(folder) as work:
        digest = write_weights(tensors, work / WEIGHTS)
        record = LoraRecord(config, base, base_hash, prediction_type, digest)
        (work / RECORD).write_text(json.dumps(to_plain(record), indent=1) + "\n")


def read_lora(folder: Path) -> StoredLora:
    record = read_record(LoraRecord, folder / RECORD)
    if record.format != 1:
        raise UserError(f"{folder / RECORD} has format {record.format}; this version of dpt reads format 1")
    tensors = read_weights(folder / WEIGHTS, record.weights_sha256)
    check_numbers(tensors, str(folder / WEIGHTS))
    return StoredLora(record, tensors)


def attach_lora(backbone: Backbone, stored: StoredLora, where: str, allow_other_base: bool = False) -> Lora:
    """Put a stored LoRA into the model it was trained in; another model only if allowed."""
    record = stored.record
    check_base(backbone, record, f"the LoRA {where} was trained in", allow_other_base)
    _check_architecture(backbone, stored, where)
    texts = [target for target in _targets(stored) if is_text_target(target)]
    lora = Lora(backbone, record.config, text_targets=texts)
    try:
        lora.load(stored.tensors, where)
    except UserError:
        lora.remove()
        raise
    if not stored.blocks_recorded and (missing := _blocks_without(backbone, lora)):
        warnings.warn(
            f"{where} has no LoRA for the blocks {', '.join(missing)} of the model: they stay as in the base model",
            stacklevel=2,
        )
    return lora


def _targets(stored: StoredLora) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".lora_")[0] for name in stored.tensors))


def _check_architecture(backbone: Backbone, stored: StoredLora, where: str) -> None:
    """A LoRA whose layers the model does not all have is refused, by the name of its architecture if that is known."""
    targets = [target for target in _targets(stored) if not is_text_target(target)]
    if not {*targets} - {*backbone.lora_targets(["all"])}:
        return
    known = lora_architecture(targets) or ("" if any(map(backbone.block_of, targets)) else "another architecture")
    if known and known != backbone.architecture:
        raise UserError(f"{where} is a LoRA of {known}, and this model is {backbone.architecture}")


def _blocks_without(backbone: Backbone, lora: Lora) -> list[str]:
    filled = {backbone.block_of(target) for target in lora.targets}
    blocks = dict.fromkeys(backbone.block_of(target) for target in backbone.lora_targets(["all"]))
    return [block for block in blocks if block is not None and block not in filled]
