"""An adapter as a folder: `adapter.safetensors`, and `adapter.json` with its config and the model it belongs to."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from dpt.adapter.config import AdapterConfig
from dpt.adapter.io.published import FILE_NAME, build_adapter, load_published
from dpt.adapter.model import Adapter
from dpt.adapter.phrase_encoder import PretrainedPhraseEncoder
from dpt.errors import UserError
from dpt.files import atomic_folder, sha256
from dpt.records import read_record, to_plain
from dpt.weights import load_strictly, read_weights, write_weights

WEIGHTS, RECORD = "adapter.safetensors", "adapter.json"

TEXT_ENCODER, TEXT_WEIGHTS = "text_encoder", "model.safetensors"


@dataclass(frozen=True)
class AdapterRecord:
    """Config and origin of a stored adapter."""

    config: AdapterConfig
    base: str = ""
    """Name of the model whose features it was trained on."""
    base_hash: str = ""
    """That model's content hash."""
    prediction_type: str = ""
    weights_sha256: str = ""
    """Empty in the oldest records."""
    text_encoder_sha256: str = ""
    """Of the text encoder that was trained with the adapter, if one was."""
    format: int = 1


def save_adapter(
    adapter: Adapter, folder: Path, *, base: str = "", base_hash: str = "", prediction_type: str = ""
) -> None:
    """Write the folder, completely or not at all; it must be empty or missing."""
    tensors = {key: tensor for key, tensor in adapter.state_dict().items() if not is_text_encoder_key(key)}
    with atomic_folder(folder) as work:
        record = AdapterRecord(adapter.config, base, base_hash, prediction_type, write_weights(tensors, work / WEIGHTS))
        if adapter.text_encoder is not None:
            adapter.text_encoder.save(work / TEXT_ENCODER)
            record = replace(record, text_encoder_sha256=sha256(work / TEXT_ENCODER / TEXT_WEIGHTS))
        (work / RECORD).write_text(json.dumps(to_plain(record), indent=1) + "\n")


def load_adapter(folder: Path) -> tuple[Adapter, AdapterRecord]:
    """The adapter in evaluation mode, with its own text encoder if one was trained with it; and its record."""
    record = read_record(AdapterRecord, folder / RECORD)
    if record.format != 1:
        raise UserError(f"{folder / RECORD} has format {record.format}; this version of dpt reads format 1")
    weights = read_weights(folder / WEIGHTS, record.weights_sha256)
    adapter = build_adapter(record.config, weights, str(folder / WEIGHTS))
    if record.text_encoder_sha256:
        adapter.text_encoder = _open_text_encoder(folder / TEXT_ENCODER, record.text_encoder_sha256)
    return adapter.eval(), record


def is_text_encoder_key(key: str) -> bool:
    return key.startswith(f"{TEXT_ENCODER}.")


def _open_text_encoder(folder: Path, expected_sha256: str) -> PretrainedPhraseEncoder:
    file = folder / TEXT_WEIGHTS
    if not file.is_file():
        raise UserError(f"the text encoder that was trained with the adapter is missing: {file}")
    if sha256(file) != expected_sha256:
        raise UserError(f"{file} is not the text encoder that was trained with the adapter (its SHA-256 differs)")
    return PretrainedPhraseEncoder.open(folder)


MAY_DIFFER = ("dropout",)
"""Config fields that do not change what the weights mean."""


def init_from(adapter: Adapter, path: Path) -> AdapterRecord:
    """Copy the weights stored at `path` into the adapter, logit_scale included, and return their record.

    A text encoder that was trained with the stored adapter is copied too; else the adapter keeps its own.
    """
    stored, record = _open(path, adapter.config)
    expected, actual = vars(adapter.config), vars(stored.config)
    names = [field.name for field in fields(AdapterConfig) if field.name not in MAY_DIFFER]
    if differing := [f"{name} is {actual[name]!r} there and {expected[name]!r} here" for name in names
                     if expected[name] != actual[name]]:  # fmt: skip
        raise UserError(f"training cannot start from the adapter of {path}: {'; '.join(differing[:3])}")
    if stored.text_encoder is not None and adapter.text_encoder is None:
        raise UserError(f"the adapter of {path} was trained with its text encoder: add --no_freeze_text_encoder")
    kept = {} if stored.text_encoder else {k: v for k, v in adapter.state_dict().items() if is_text_encoder_key(k)}
    load_strictly(adapter, {**stored.state_dict(), **kept}, str(path))
    return record


def config_at(path: Path) -> AdapterConfig | None:
    """The config of the adapter at `path`; None if it is not recorded, as in the published file."""
    folder = _folder(path)
    return None if folder is None else read_record(AdapterRecord, folder / RECORD).config


def weights_at(path: Path) -> Path:
    """The file that `init_from` reads the weights from."""
    folder = _folder(path)
    if folder is not None:
        return folder / WEIGHTS
    return path / FILE_NAME if path.is_dir() else path


def _folder(path: Path) -> Path | None:
    return next((folder for folder in (path, path / "adapter") if (folder / RECORD).is_file()), None)


def _open(path: Path, config: AdapterConfig) -> tuple[Adapter, AdapterRecord]:
    if (folder := _folder(path)) is not None:
        return load_adapter(folder)
    if not path.exists():
        raise UserError(f"there is no adapter {path}: give the folder of a finished run of stage 1 or stage 2")
    if path.is_dir() and not (path / FILE_NAME).is_file():
        has_lora = (path / "lora").is_dir() or (path / "lora.json").is_file()
        instead = "; it holds a LoRA alone, which stage 1 has to be trained beside" if has_lora else ""
        raise UserError(f"{path} holds no adapter: neither {RECORD} nor {FILE_NAME}{instead}")
    return load_published(path, config)[0], AdapterRecord(config)
