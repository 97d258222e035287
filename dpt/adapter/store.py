"""An adapter as a folder of its own: `adapter.safetensors` beside `adapter.json`, which says how to build it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dpt.adapter.config import AdapterConfig
from dpt.adapter.model import Adapter
from dpt.adapter.strict import load_strictly
from dpt.errors import UserError
from dpt.folders import whole_folder
from dpt.records import read_record, to_plain

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
    format: int = 1


def save_adapter(
    adapter: Adapter, folder: Path, *, base: str = "", base_hash: str = "", prediction_type: str = ""
) -> None:
    """Write the folder, all or nothing; it must not hold anything yet."""
    record = AdapterRecord(adapter.config, base, base_hash, prediction_type)
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in adapter.state_dict().items()}
    with whole_folder(folder) as work:
        save_file(weights, work / WEIGHTS, metadata={"format": "pt"})
        (work / RECORD).write_text(json.dumps(to_plain(record), indent=1) + "\n")


def load_adapter(folder: Path) -> tuple[Adapter, AdapterRecord]:
    """The adapter in evaluation mode, and its record."""
    record = read_record(AdapterRecord, folder / RECORD)
    if record.format != 1:
        raise UserError(f"{folder / RECORD} has format {record.format}; this version of dpt reads format 1")
    try:
        weights = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise UserError(f"{folder} has no {WEIGHTS}") from None
    except (SafetensorError, OSError):
        raise UserError(f"{folder / WEIGHTS} is truncated or not a safetensors file") from None
    adapter = Adapter(record.config)
    load_strictly(adapter, weights, str(folder / WEIGHTS))
    return adapter.eval(), record
