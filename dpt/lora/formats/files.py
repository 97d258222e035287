"""The safetensors files of other programs, with what dpt knows about the LoRA kept in their metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dpt.errors import UserError
from dpt.lora.store import LoraRecord
from dpt.plain_json import parse_json
from dpt.records import to_plain
from dpt.weights import read_weights, write_weights

RECORD_KEY = "dpt_lora"


def write_lora_file(
    tensors: Mapping[str, Tensor], record: LoraRecord, file: Path, metadata: Mapping[str, str], hash_key: str = ""
) -> None:
    """The record keeps a checksum of the tensors; a format that has a key of its own for it gets it there as well."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = hashlib.sha256(_payload(save(tensors))).hexdigest()
    own = json.dumps(to_plain(replace(record, base=_public(record.base), weights_sha256=digest)))
    write_weights(tensors, file, {**metadata, **({hash_key: digest} if hash_key else {}), RECORD_KEY: own})


def _public(base: str) -> str:
    """Where a model lay on the machine that trained with it is nobody else's business."""
    return Path(base).name if Path(base).is_absolute() else base


def read_lora_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. A file that dpt wrote is found out if a single bit of it has changed since."""
    tensors = read_weights(file)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
    except (SafetensorError, OSError):
        raise UserError(f"{file} is truncated or not a safetensors file") from None
    expected = _checksum(metadata.get(RECORD_KEY, ""))
    if expected and hashlib.sha256(_payload(file.read_bytes())).hexdigest() != expected:
        raise UserError(f"{file} is damaged: its tensors are not those that were exported (their SHA-256 differs)")
    return tensors, metadata


def _checksum(record: str) -> str:
    """Whatever else is wrong with the record is found out where it is read."""
    try:
        content = parse_json(record) if record else {}
    except ValueError:
        return ""
    return str(content.get("weights_sha256", "")) if isinstance(content, dict) else ""


def _payload(file: bytes) -> bytes:
    """What follows the header, and does not depend on the metadata in it."""
    return file[8 + int.from_bytes(file[:8], "little") :]
