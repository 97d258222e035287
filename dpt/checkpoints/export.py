"""Write a checkpoint in the format of another program; download one from a hub."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from dpt.adapter.io import FILE_NAME as PUBLISHED
from dpt.adapter.io import config_of
from dpt.adapter.transformer import AdapterConfig
from dpt.checkpoints.open import Checkpoint
from dpt.errors import UserError
from dpt.files import atomic_folder, atomic_new_file, scratch_folder, sha256
from dpt.generation_defaults import generation_defaults, write_defaults
from dpt.hub import STALLED_AFTER_SECONDS, HubSource, fetch_from_hub
from dpt.lora.formats.diffusers import FILE_NAME as DIFFUSERS
from dpt.lora.formats.diffusers import write_diffusers
from dpt.lora.formats.kohya import write_kohya
from dpt.lora.formats.published import to_published
from dpt.lora.io import StoredLora


@dataclass(frozen=True)
class DownloadSpec:
    """Which file of which repository, and what it must be; an empty or missing check is not made."""

    repo: str
    file: str
    revision: str | None = None
    size: int | None = None
    sha256: str = ""


def download_checkpoint(
    spec: DownloadSpec, folder: Path, endpoint: str | None = None, stalled_after: float = STALLED_AFTER_SECONDS
) -> str:
    """Put the file into `folder`, unless it already exists; return a sentence that says what was done."""
    from huggingface_hub import hf_hub_download

    final = folder / PurePosixPath(spec.file).name
    if final.exists():
        _check(final, spec, f"{final} already exists, but it")
        return f"{final} already exists ({_facts(final)})"
    source = HubSource(spec.repo, spec.revision, spec.file)
    by_hand = f", or fetch the file with a browser elsewhere and put it at {final}"
    with atomic_new_file(final) as work, scratch_folder(work.parent, f"{final.name}.parts") as scratch:

        def download() -> str:
            return hf_hub_download(
                spec.repo,
                spec.file,
                revision=spec.revision,
                local_dir=scratch,
                endpoint=endpoint,
                token=False if endpoint else None,
            )

        fetched = fetch_from_hub(download, source, scratch, stalled_after, by_hand)
        _check(fetched, spec, f"{source} was not kept: it")
        fetched.replace(work)
    return f"{final} was fetched from {spec.repo} ({_facts(final)})"


def _check(file: Path, spec: DownloadSpec, subject: str) -> None:
    size = file.stat().st_size
    if spec.size not in (None, size):
        raise UserError(f"{subject} has {size} bytes instead of {spec.size}")
    if spec.sha256 and (digest := sha256(file)) != spec.sha256:
        raise UserError(f"{subject} has the SHA-256 {digest} instead of {spec.sha256}")


def _facts(file: Path) -> str:
    return f"{file.stat().st_size:,} bytes, SHA-256 {sha256(file)}"


@dataclass(frozen=True)
class ExportResult:
    file: Path
    notes: tuple[str, ...]
    """What the format cannot carry, one sentence each."""


def export_checkpoint(checkpoint: Checkpoint, format: str, out: Path) -> ExportResult:
    """Write it in one of `FORMATS`, completely or not at all; `out` must not exist or be an empty folder."""
    return FORMATS[format](checkpoint, out)


def export_diffusers(checkpoint: Checkpoint, out: Path) -> ExportResult:
    """A folder for `load_lora_weights`."""
    lora = _lora_of(checkpoint, "diffusers")
    _expect_folder(out, "diffusers", DIFFUSERS)
    negative = generation_defaults(checkpoint.path).negative_prompt
    with atomic_folder(out) as work:
        write_diffusers(lora, work / DIFFUSERS, str(checkpoint.path))
        if negative:
            write_defaults(work, {"negative_prompt": negative})
            card = CARD.format(base=Path(lora.record.base or "unknown").name, negative=json.dumps(negative))
            (work / "README.md").write_text(card)
    return ExportResult(out / DIFFUSERS, (*_adapter_note(checkpoint), *_negative_note(negative)))


def export_kohya(checkpoint: Checkpoint, out: Path) -> ExportResult:
    """A file for the LoRA folder of ComfyUI or A1111."""
    lora = _lora_of(checkpoint, "kohya")
    if out.suffix != ".safetensors":
        raise UserError(f"the format kohya is one file: --out must end in .safetensors, and {out} does not")
    negative = generation_defaults(checkpoint.path).negative_prompt
    with atomic_new_file(out) as work:
        write_kohya(lora, work, str(checkpoint.path), negative)
    return ExportResult(out, (*_adapter_note(checkpoint), *_negative_note(negative)))


def export_published(checkpoint: Checkpoint, out: Path) -> ExportResult:
    """The published code's checkpoint: adapter and LoRA in one flat dict of float32 tensors."""
    _expect_folder(out, "published", PUBLISHED)
    content, notes = {}, []
    if checkpoint.adapter:
        content = {name: tensor.float().clone() for name, tensor in checkpoint.adapter.state_dict().items()}
        notes += _assumptions(checkpoint.adapter.config, content)
    if lora := checkpoint.lora:
        content |= {name: tensor.contiguous() for name, tensor in to_published(lora, str(checkpoint.path)).items()}
        config = lora.record.config
        if config.scale != 1:
            scale = f"alpha / rank = {config.resolved_alpha:g} / {config.rank}"
            notes.append(f"the published layout has no alpha: the scale {scale} was multiplied into the `up` matrices")
    with atomic_folder(out) as work:
        _save_pickle(content, work / PUBLISHED)
    return ExportResult(out / PUBLISHED, tuple(notes))


def _save_pickle(content: dict[str, Tensor], file: Path) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:  # what torch makes of a full disk, whose number it does not pass on
        if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error


FORMATS: dict[str, Callable[[Checkpoint, Path], ExportResult]] = {
    "diffusers": export_diffusers,
    "kohya": export_kohya,
    "published": export_published,
}


def _lora_of(checkpoint: Checkpoint, format: str) -> StoredLora:
    if checkpoint.lora is None:
        raise UserError(
            f"the format {format} is for LoRAs, and {checkpoint.path} has only an adapter: use --format published"
        )
    return checkpoint.lora


def _expect_folder(out: Path, format: str, name: str) -> None:
    if out.suffix in (".safetensors", ".bin"):
        raise UserError(f"the format {format} is a folder with {name} in it: --out must name the folder, not {out}")


CARD = """---
library_name: diffusers
base_model: {base}
tags:
- text-to-image
- lora
- diffusers
---

A LoRA that was tuned on preferred pictures, and on others under a phrase. Give that phrase as the negative prompt:

```python
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("{base}")
pipe.load_lora_weights("FOLDER_OF_THIS_FILE")
image = pipe("a prompt", negative_prompt={negative}).images[0]
```
"""


def _negative_note(negative: str) -> tuple[str, ...]:
    return (f"sample with the negative prompt {negative!r}: the LoRA was tuned for it",) if negative else ()


def _adapter_note(checkpoint: Checkpoint) -> tuple[str, ...]:
    return ("the adapter was not exported: this format is for the LoRA alone",) if checkpoint.adapter else ()


def _assumptions(config: AdapterConfig, tensors: dict[str, Tensor]) -> list[str]:
    """What a reader of the published layout would assume about this adapter, wrongly."""
    unstored = {name: getattr(config, name) for name in ("unet_feature", "num_queries_matching", "nheads")}
    read_back = config_of(tensors, "the adapter", **unstored)
    expected = {field.name: getattr(read_back, field.name) for field in fields(AdapterConfig)}
    expected |= {name: getattr(AdapterConfig, name) for name in unstored}
    wrong = [
        f"{name} is {getattr(config, name)!r}, not {value!r}"
        for name, value in expected.items()
        if name != "num_queries_rec" and getattr(config, name) != value
    ]
    return (
        [f"the published layout cannot say that {', '.join(wrong)}: give these settings along with the file"]
        if wrong
        else []
    )
