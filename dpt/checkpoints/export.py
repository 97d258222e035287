"""A trained result, written so that other programs read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from dpt.adapter.config import AdapterConfig
from dpt.adapter.io.published import FILE_NAME as PUBLISHED
from dpt.adapter.io.published import config_of
from dpt.checkpoints.open import Checkpoint
from dpt.errors import UserError
from dpt.files import atomic_folder, atomic_new_file
from dpt.lora.formats.diffusers import FILE_NAME as DIFFUSERS
from dpt.lora.formats.diffusers import write_diffusers
from dpt.lora.formats.kohya import write_kohya
from dpt.lora.formats.published import to_published
from dpt.lora.io import StoredLora


@dataclass(frozen=True)
class ExportResult:
    file: Path
    notes: tuple[str, ...]
    """What the format could not carry as it was, one sentence each."""


def export(checkpoint: Checkpoint, form: str, out: Path) -> ExportResult:
    """Write it in one of `FORMATS`, all or nothing, where nothing is yet."""
    return FORMATS[form](checkpoint, out)


def export_diffusers(checkpoint: Checkpoint, out: Path) -> ExportResult:
    """A folder for `load_lora_weights`."""
    lora = _lora_of(checkpoint, "diffusers")
    _expect_folder(out, "diffusers", DIFFUSERS)
    with atomic_folder(out) as work:
        write_diffusers(lora, work / DIFFUSERS, str(checkpoint.path))
    return ExportResult(out / DIFFUSERS, _left_behind(checkpoint))


def export_kohya(checkpoint: Checkpoint, out: Path) -> ExportResult:
    """A file for the folder where such a program keeps its LoRAs, which shows it under the file's name."""
    lora = _lora_of(checkpoint, "kohya")
    if out.suffix != ".safetensors":
        raise UserError(f"the format kohya is one file: let --out end in .safetensors, which {out} does not")
    with atomic_new_file(out) as work:
        write_kohya(lora, work, str(checkpoint.path))
    return ExportResult(out, _left_behind(checkpoint))


def export_published(checkpoint: Checkpoint, out: Path) -> ExportResult:
    """The published code's checkpoint: adapter and LoRA in one flat list of float32 tensors."""
    _expect_folder(out, "published", PUBLISHED)
    content, notes = {}, []
    if checkpoint.adapter:
        content = {name: tensor.float().clone() for name, tensor in checkpoint.adapter.state_dict().items()}
        notes += _assumptions(checkpoint.adapter.config, content)
    if lora := checkpoint.lora:
        content |= {name: tensor.contiguous() for name, tensor in to_published(lora, str(checkpoint.path)).items()}
        config = lora.record.config
        if config.scale != 1:
            scale = f"alpha / rank = {config.strength:g} / {config.rank}"
            notes.append(f"the published layout has no alpha: the scale {scale} was made part of the `up` matrices")
    with atomic_folder(out) as work:
        torch.save(content, work / PUBLISHED)
    return ExportResult(out / PUBLISHED, tuple(notes))


FORMATS: dict[str, Callable[[Checkpoint, Path], ExportResult]] = {
    "diffusers": export_diffusers,
    "kohya": export_kohya,
    "published": export_published,
}


def _lora_of(checkpoint: Checkpoint, form: str) -> StoredLora:
    if checkpoint.lora is None:
        raise UserError(f"the format {form} is for LoRAs, and {checkpoint.path} has none: only an adapter")
    return checkpoint.lora


def _expect_folder(out: Path, form: str, name: str) -> None:
    if out.suffix in (".safetensors", ".bin"):
        raise UserError(f"the format {form} is a folder with {name} in it: let --out name the folder, not {out}")


def _left_behind(checkpoint: Checkpoint) -> tuple[str, ...]:
    return ("the adapter stays behind: this format is for the LoRA alone",) if checkpoint.adapter else ()


def _assumptions(config: AdapterConfig, tensors: dict[str, torch.Tensor]) -> list[str]:
    """What a reader of the published layout would take for granted about this adapter, and be wrong."""
    told = {name: getattr(config, name) for name in ("unet_feature", "num_queries_matching", "nheads")}
    assumed = config_of(tensors, "the adapter", **told)
    shown = {one.name: getattr(assumed, one.name) for one in fields(AdapterConfig)}
    expected = shown | {name: getattr(AdapterConfig, name) for name in told}
    wrong = [
        f"{name} is {getattr(config, name)!r}, not {value!r}"
        for name, value in expected.items()
        if name != "num_queries_rec" and getattr(config, name) != value
    ]
    return [f"the published layout has no room to say that {', '.join(wrong)}: tell whoever reads it"] if wrong else []
