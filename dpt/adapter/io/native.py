"""An adapter as a folder of its own: `adapter.safetensors` beside `adapter.json`, which says how to build it."""

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
    """What is known of a stored adapter besides its weights."""

    config: AdapterConfig
    base: str = ""
    """The model it was trained to read, as it was named then."""
    base_hash: str = ""
    """That model's content hash."""
    prediction_type: str = ""
    weights_sha256: str = ""
    """Of the file beside the record; none was kept at first."""
    text_encoder_sha256: str = ""
    """Of the weights of the text encoder that was trained along, if one was."""
    format: int = 1


def save_adapter(
    adapter: Adapter, folder: Path, *, base: str = "", base_hash: str = "", prediction_type: str = ""
) -> None:
    """Write the folder, all or nothing; it must not hold anything yet."""
    own = {key: tensor for key, tensor in adapter.state_dict().items() if not of_text(key)}
    with atomic_folder(folder) as work:
        record = AdapterRecord(adapter.config, base, base_hash, prediction_type, write_weights(own, work / WEIGHTS))
        if adapter.text_encoder is not None:
            adapter.text_encoder.save(work / TEXT_ENCODER)
            record = replace(record, text_encoder_sha256=sha256(work / TEXT_ENCODER / TEXT_WEIGHTS))
        (work / RECORD).write_text(json.dumps(to_plain(record), indent=1) + "\n")


def load_adapter(folder: Path) -> tuple[Adapter, AdapterRecord]:
    """The adapter in evaluation mode, with the text encoder that was trained along, if one was; and its record."""
    record = read_record(AdapterRecord, folder / RECORD)
    if record.format != 1:
        raise UserError(f"{folder / RECORD} has format {record.format}; this version of dpt reads format 1")
    weights = read_weights(folder / WEIGHTS, record.weights_sha256)
    adapter = build_adapter(record.config, weights, str(folder / WEIGHTS))
    if record.text_encoder_sha256:
        adapter.text_encoder = _open_text_encoder(folder / TEXT_ENCODER, record.text_encoder_sha256)
    return adapter.eval(), record


def of_text(key: str) -> bool:
    """Whether a tensor of the adapter's state is one of its text encoder's."""
    return key.startswith(f"{TEXT_ENCODER}.")


def _open_text_encoder(folder: Path, expected_sha256: str) -> PretrainedPhraseEncoder:
    file = folder / TEXT_WEIGHTS
    if not file.is_file():
        raise UserError(f"the text encoder that was trained with the adapter is not there: {file}")
    if sha256(file) != expected_sha256:
        raise UserError(f"{file} is not the text encoder that was trained with the adapter (its SHA-256 differs)")
    return PretrainedPhraseEncoder.open(folder)


MAY_DIFFER = ("dropout",)
"""What of the configuration changes no weight's meaning."""


def init_from(adapter: Adapter, path: Path) -> AdapterRecord:
    """Give the adapter the weights found at `path`, logit_scale included; what is known of them besides.

    Where a text encoder was trained along there, it is gone on from too; where none was, the adapter's own stays.
    """
    found, record = _open(path, adapter.config)
    differing = [
        f"{one.name} is {getattr(found.config, one.name)!r} there and {getattr(adapter.config, one.name)!r} here"
        for one in fields(AdapterConfig)
        if one.name not in MAY_DIFFER and getattr(found.config, one.name) != getattr(adapter.config, one.name)
    ]
    if differing:
        raise UserError(f"the adapter of {path} cannot be gone on from: {'; '.join(differing[:3])}")
    if found.text_encoder is not None and adapter.text_encoder is None:
        raise UserError(f"the adapter of {path} was trained with its text encoder: go on with --no_freeze_text_encoder")
    kept = {key: value for key, value in adapter.state_dict().items() if found.text_encoder is None and of_text(key)}
    load_strictly(adapter, {**found.state_dict(), **kept}, str(path))
    return record


def config_at(path: Path) -> AdapterConfig | None:
    """The configuration of the adapter at `path`; None where it is not known, as of the published file."""
    folder = _folder(path)
    return None if folder is None else read_record(AdapterRecord, folder / RECORD).config


def weights_at(path: Path) -> Path:
    """The file of weights that `init_from` reads."""
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
        raise UserError(f"there is no adapter {path}")
    if path.is_dir() and not (path / FILE_NAME).is_file():
        raise UserError(f"{path} holds no adapter: neither {RECORD} nor {FILE_NAME}")
    return load_published(path, config)[0], AdapterRecord(config)
