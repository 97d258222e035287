"""An adapter as a folder of its own: `adapter.safetensors` beside `adapter.json`, which says how to build it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dpt.adapter.config import AdapterConfig
from dpt.adapter.model import Adapter
from dpt.errors import UserError
from dpt.folders import whole_folder
from dpt.records import read_record, to_plain
from dpt.weights import load_strictly, read_weights, write_weights

WEIGHTS, RECORD = "adapter.safetensors", "adapter.json"


@dataclass(frozen=True)
class AdapterRecord:
    """What is known of a stored adapter besides its weights."""

    config: AdapterConfig
    base: str = ""
    """The model it was trained to read, as it was named then."""
    base_hash: str = ""
    """That model's content hash."""
    prediction_type: str = ""
    weights_sha256: str = ""
    """Of the file beside the record; none was kept at first."""
    format: int = 1


def save_adapter(
    adapter: Adapter, folder: Path, *, base: str = "", base_hash: str = "", prediction_type: str = ""
) -> None:
    """Write the folder, all or nothing; it must not hold anything yet."""
    with whole_folder(folder) as work:
        digest = write_weights(adapter.state_dict(), work / WEIGHTS)
        record = AdapterRecord(adapter.config, base, base_hash, prediction_type, digest)
        (work / RECORD).write_text(json.dumps(to_plain(record), indent=1) + "\n")


def load_adapter(folder: Path) -> tuple[Adapter, AdapterRecord]:
    """The adapter in evaluation mode, and its record."""
    record = read_record(AdapterRecord, folder / RECORD)
    if record.format != 1:
        raise UserError(f"{folder / RECORD} has format {record.format}; this version of dpt reads format 1")
    weights = read_weights(folder / WEIGHTS, record.weights_sha256)
    adapter = Adapter(record.config)
    load_strictly(adapter, weights, str(folder / WEIGHTS))
    return adapter.eval(), record
