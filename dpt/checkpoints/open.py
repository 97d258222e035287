"""Open a checkpoint of any format, with all of it checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpt.adapter.config import AdapterConfig, check_fits
from dpt.adapter.io import native as adapter_store
from dpt.adapter.io import published as published_adapter
from dpt.adapter.io.native import AdapterRecord
from dpt.adapter.model import Adapter
from dpt.backbone import Backbone
from dpt.backbone.identity import check_base
from dpt.embedded import embedded_path
from dpt.errors import UserError
from dpt.lora import io as lora_store
from dpt.lora.formats import diffusers, kohya
from dpt.lora.formats.common import check_lora, read_lora_file
from dpt.lora.formats.published import from_published
from dpt.lora.injection import Lora
from dpt.lora.io import StoredLora

KINDS = {
    "native": "result of dpt",
    "published": "published checkpoint",
    "diffusers": "LoRA of diffusers",
    "kohya": "LoRA of kohya's scripts",
}


@dataclass(frozen=True)
class Checkpoint:
    """An adapter, a LoRA, or both; complete and valid."""

    path: Path
    kind: str
    """A key of `KINDS`."""
    files: tuple[Path, ...]
    """The files that hold the tensors."""
    adapter: Adapter | None = None
    """In evaluation mode, on the CPU."""
    adapter_record: AdapterRecord | None = None
    lora: StoredLora | None = None

    def check_belongs(self, backbone: Backbone, allow_other_base: bool = False) -> None:
        """Refuse a checkpoint whose adapter was trained on another model, unless allowed, or does not fit this one."""
        if self.adapter_record is None:
            return
        record = self.adapter_record
        check_base(backbone, record, f"the adapter {self.path} was trained to read", allow_other_base)
        check_fits(record.config, backbone)

    def attach(self, backbone: Backbone, allow_other_base: bool = False) -> Lora | None:
        """Put the LoRA, if there is one, into the model."""
        self.check_belongs(backbone, allow_other_base)
        if self.lora is None:
            return None
        return lora_store.attach_lora(backbone, self.lora, str(self.path), allow_other_base)


def open_checkpoint(path: Path, adapter_config: AdapterConfig | None = None) -> Checkpoint:
    """Open a folder with `adapter/` and `lora/`, one of those two, the published file or its folder, or a LoRA file
    of diffusers or kohya.

    `adapter_config` is for the published file, which does not say which feature its adapter reads or how its queries
    are split; by default they are the published ones.
    """
    path = embedded_path(path)
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}: give the folder of a finished training run, or a LoRA file")
    checkpoint = _open_folder(path, adapter_config) if path.is_dir() else _open_file(path, adapter_config)
    if checkpoint.lora:
        check_lora(checkpoint.lora, str(path))
    return checkpoint


def _open_folder(path: Path, config: AdapterConfig | None) -> Checkpoint:
    adapter = _folder_with(adapter_store.RECORD, path, path / "adapter")
    lora = _folder_with(lora_store.RECORD, path, path / "lora")
    if adapter or lora:
        return _open_native(path, adapter, lora)
    for name in (published_adapter.FILE_NAME, diffusers.FILE_NAME):
        if (path / name).is_file():
            return _open_file(path / name, config)
    native = [f"adapter/{adapter_store.RECORD}", f"lora/{lora_store.RECORD}"]
    names = ", ".join([*native, published_adapter.FILE_NAME, diffusers.FILE_NAME])
    raise UserError(f"{path} holds no checkpoint: {what_else_is_in(path) or f'there is none of {names} in it'}")


def what_else_is_in(path: Path) -> str | None:
    """What a folder holds instead of a checkpoint, and what to do with it."""
    if (path / "model_index.json").is_file():
        return "it is a model, which --pretrained_model_name_or_path takes"
    if any(path.glob("checkpoint-*")):
        return "it is a training run that is not finished; repeat its command to continue it"
    return None


def _folder_with(record: str, *folders: Path) -> Path | None:
    return next((folder for folder in folders if (folder / record).is_file()), None)


def _open_native(path: Path, adapter_folder: Path | None, lora_folder: Path | None) -> Checkpoint:
    adapter, record = adapter_store.load_adapter(adapter_folder) if adapter_folder else (None, None)
    lora = lora_store.read_lora(lora_folder) if lora_folder else None
    hashes = {r.base_hash for r in (record, lora.record if lora else None) if r and r.base_hash}
    if len(hashes) > 1:
        raise UserError(f"the adapter and the LoRA in {path} were trained in different models")
    files = [adapter_folder / adapter_store.WEIGHTS] if adapter_folder else []
    files += [lora_folder / lora_store.WEIGHTS] if lora_folder else []
    return Checkpoint(path, "native", tuple(files), adapter, record, lora)


def _open_file(file: Path, config: AdapterConfig | None) -> Checkpoint:
    if file.suffix != ".safetensors":
        return _open_published(file, config)
    tensors, metadata = read_lora_file(file)
    first = next(iter(tensors), "")
    if any(name.startswith(kohya.PREFIXES) for name in tensors):
        return Checkpoint(file, "kohya", (file,), lora=kohya.from_kohya(tensors, metadata, str(file)))
    if any(name.startswith((diffusers.UNET, diffusers.TRANSFORMER, *diffusers.TEXT_ENCODERS)) for name in tensors):
        return Checkpoint(file, "diffusers", (file,), lora=diffusers.from_diffusers(tensors, metadata, str(file)))
    for record in (adapter_store.RECORD, lora_store.RECORD):
        if file.with_name(record).is_file():
            raise UserError(f"{file} is part of a checkpoint: give its folder, {file.parent}")
    raise UserError(f"{file} is not a LoRA file that dpt supports: {f'it holds {first}' if first else 'it is empty'}")


def _open_published(file: Path, config: AdapterConfig | None) -> Checkpoint:
    published = published_adapter.read_published(file)
    adapter = published_adapter.adapter_of(published, file, config).eval() if published.adapter else None
    lora = from_published(published.lora, str(file)) if published.lora else None
    if adapter is None and lora is None:
        raise UserError(f"{file} holds no tensors")
    return Checkpoint(file, "published", (file,), adapter, AdapterRecord(adapter.config) if adapter else None, lora)
