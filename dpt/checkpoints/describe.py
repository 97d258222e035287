"""Describe a checkpoint or a model: as JSON values and as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dpt.adapter.io import native as adapter_store
from dpt.adapter.io.native import AdapterRecord
from dpt.adapter.model import Adapter
from dpt.backbone.folder import SCHEDULER, UNET, ModelFolder
from dpt.backbone.identity import model_hash
from dpt.backbone.opening import model_folder, transformer_family
from dpt.backbone.rectified_flow import FLOW
from dpt.backbone.transformer_families import TransformerFamily
from dpt.backbone.unet_features import block_names
from dpt.checkpoints.open import KINDS, Checkpoint
from dpt.generation_defaults import generation_defaults
from dpt.lora.formats.common import missing_blocks, targets_in
from dpt.lora.io import LoraRecord, StoredLora
from dpt.weights import has_checksums

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
