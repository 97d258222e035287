"""Open a checkpoint of any format, with all of it checked, and describe it as JSON values and as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dpt.adapter import io as adapter_store
from dpt.adapter import io as published_adapter
from dpt.adapter.io import AdapterRecord
from dpt.adapter.model import Adapter
from dpt.adapter.transformer import AdapterConfig, check_fits
from dpt.backbone import Backbone
from dpt.backbone.folder import SCHEDULER, UNET, ModelFolder
from dpt.backbone.identity import check_base, model_hash
from dpt.backbone.noise import FLOW
from dpt.backbone.opening import model_folder, transformer_family
from dpt.backbone.transformer_families import TransformerFamily
from dpt.backbone.unet_features import block_names
from dpt.embedded import checkpoint_path, embedded_path
from dpt.errors import UserError
from dpt.files import atomic_file
from dpt.generation_defaults import file_beside, generation_defaults
from dpt.lora import io as lora_store
from dpt.lora.formats import diffusers, kohya
from dpt.lora.formats.common import check_lora, missing_blocks, read_lora_file, targets_in
from dpt.lora.formats.published import from_published
from dpt.lora.injection import Lora
from dpt.lora.io import LoraRecord, StoredLora
from dpt.untrusted import read_json_object
from dpt.weights import has_checksums

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
    path = checkpoint_path(path)
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


Summary = dict[str, Any]


NOT_IN_PUBLISHED = ["unet_feature", "queries", "nheads", "text_encoder_type", "code_placement"]
"""Not in the published file: the published values are assumed."""


def describe(checkpoint: Checkpoint) -> Summary:
    summary: Summary = {"path": str(checkpoint.path), "format": checkpoint.kind, "kind": KINDS[checkpoint.kind]}
    if checkpoint.adapter and checkpoint.adapter_record:
        assumed = NOT_IN_PUBLISHED if checkpoint.kind == "published" else []
        summary["adapter"] = _adapter(checkpoint.adapter, checkpoint.adapter_record, assumed)
    if checkpoint.lora:
        negative = generation_defaults(checkpoint.path).negative_prompt
        summary["lora"] = {**_lora(checkpoint.lora), **({"negative_prompt": repr(negative)} if negative else {})}
    summary["files"] = [_file(file, _checksum(file, checkpoint)) for file in checkpoint.files]
    return summary


def describe_model(path: Path) -> Summary:
    """A model in the diffusers layout, without loading it."""
    folder, family = model_folder(path), transformer_family(path)
    model = _unet_model(folder) if family is None else _transformer_model(folder, family)
    weights = [file for part in folder.components for file in folder.weights(part)]
    what = {"path": str(path), "format": "model", "kind": "model in the diffusers layout"}
    return {**what, "model": model, "files": [_file(file, "absent") for file in weights]}


def _unet_model(folder: ModelFolder) -> Summary:
    unet, scheduler = folder.config(UNET), folder.config(SCHEDULER)
    return {
        "hash": model_hash(folder),
        "prediction_type": scheduler.get("prediction_type", "epsilon"),
        "latent_size": unet["sample_size"],
        "unet_widths": list(unet["block_out_channels"]),
        "text_width": sum(folder.config(part)["hidden_size"] for part in folder.components if part.is_text_encoder),
        "unet_features": list(block_names(unet)),
    }


def _transformer_model(folder: ModelFolder, family: TransformerFamily) -> Summary:
    config = folder.config(family.transformer)
    return {
        "hash": model_hash(folder),
        "pipeline": family.pipeline,
        "prediction_type": FLOW,
        "latent_size": family.default_side(config),
        "patch": family.patch(config),
        "width": family.width(config),
        "text_width": family.text_width(config),
        "text_encoders": [part.name for part in folder.components if part.is_text_encoder],
        "features": family.block_names(config),
    }


def format_summary(summary: Summary) -> str:
    lines = [f"{summary['path']}: {summary['kind']}"]
    for part in ("adapter", "lora", "model"):
        if part in summary:
            lines += ["", part, *_rows(summary[part])]
    lines += ["", "files"]
    lines += [f"  {file['file']}  {file['bytes']:,} bytes, checksum {file['checksum']}" for file in summary["files"]]
    return "\n".join(lines)


def _adapter(adapter: Adapter, record: AdapterRecord, assumed: list[str]) -> Summary:
    config = record.config
    return {
        "unet_feature": config.unet_feature,
        "feature_channels": sum(config.feature_channels),
        "text_width": config.text_width,
        "queries": {"matching": config.num_queries_matching, "grounding": config.num_queries_rec},
        "nheads": config.nheads,
        "layers": {"encoder": config.enc_layers, "decoder": config.dec_layers},
        "hidden_dim": config.hidden_dim,
        "text_encoder_type": config.text_encoder_type,
        "code_placement": config.code_placement,
        "assumed": assumed,
        **_base(record),
        **_size(adapter.state_dict()),
    }


def _lora(stored: StoredLora) -> Summary:
    config = stored.record.config
    missing = [] if stored.blocks_recorded else missing_blocks(targets_in(stored.tensors))
    return {
        "rank": config.rank,
        "alpha": config.resolved_alpha,
        "scale": config.scale,
        "blocks": list(config.blocks),
        "projections": len(targets_in(stored.tensors)),
        **({"no_lora_in": missing} if missing else {}),
        **_base(stored.record),
        **_size(stored.tensors),
    }


def _base(record: AdapterRecord | LoraRecord) -> Summary:
    """None for what was not recorded."""
    names = ("base", "base_hash", "prediction_type")
    return {name: getattr(record, name) or None for name in names}


def _size(tensors: Mapping[str, Tensor]) -> Summary:
    return {"tensors": len(tensors), "values": sum(tensor.numel() for tensor in tensors.values())}


def _file(file: Path, checksum: str) -> Summary:
    return {"file": str(file), "bytes": file.stat().st_size, "checksum": checksum}


def _checksum(file: Path, checkpoint: Checkpoint) -> str:
    """Opening has verified it, if there is one."""
    if checkpoint.kind == "published":
        return "verified (CRC-32)" if has_checksums(file) else "absent"
    of_adapter = checkpoint.kind == "native" and file.name == adapter_store.WEIGHTS
    record = checkpoint.adapter_record if of_adapter else checkpoint.lora and checkpoint.lora.record
    return "verified (SHA-256)" if record and record.weights_sha256 else "absent"


def _rows(values: Summary) -> list[str]:
    assumed = values.get("assumed", [])
    shown = {
        name.replace("_", " "): _shown(value) + (" (assumed: the file does not say)" if name in assumed else "")
        for name, value in values.items()
        if name != "assumed"
    }
    width = max(map(len, shown))
    return [f"  {name:<{width}}  {value}" for name, value in shown.items()]


def _shown(value: Any) -> str:
    if value is None:
        return "not recorded"
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


TRAINING = "training.json"


def write_training(root: Path, sample_views: int, starts_from: Path | None = None) -> None:
    """Record beside a result how many examples its training saw, and that of the checkpoint that it started from."""
    earlier = (training_views(starts_from) or 0) if starts_from is not None else 0
    with atomic_file(root / TRAINING) as work:
        work.write_text(json.dumps({"sample_views": sample_views, "earlier_sample_views": earlier}, indent=1) + "\n")


def training_views(checkpoint: Path) -> int | None:
    """How many examples a checkpoint was trained on, with those of the one it started from; None if not recorded."""
    file = file_beside(embedded_path(checkpoint), TRAINING)
    if file is None:
        return None
    try:
        content = read_json_object(file)
        return int(content["sample_views"]) + int(content["earlier_sample_views"])
    except (UserError, KeyError, TypeError, ValueError):
        return None  # a file of that name by another program
