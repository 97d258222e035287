"""An adapter begun where another one ended: its folder, a run's folder, or the published file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from dpt.adapter.config import AdapterConfig
from dpt.adapter.model import Adapter
from dpt.adapter.published import FILE_NAME, load_published
from dpt.adapter.store import RECORD, WEIGHTS, AdapterRecord, load_adapter, of_text
from dpt.errors import UserError
from dpt.records import read_record
from dpt.weights import load_strictly

MAY_DIFFER = ("dropout",)
"""What of the configuration changes no weight's meaning."""


def start_from(adapter: Adapter, path: Path) -> AdapterRecord:
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
    """The file of weights that `start_from` reads."""
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
