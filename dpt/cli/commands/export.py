"""`dpt export`: a trained result in a form that other programs read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class ExportOptions:
    """Write the LoRA of a result (and in the published layout its adapter too) for other programs. Never overwrites."""

    path: tyro.conf.Positional[Path]
    """A result's folder, its adapter/ or lora/, the published checkpoint, or a LoRA file of diffusers or kohya."""
    out: Path
    """Where to: a folder, or for kohya the name of a .safetensors file."""
    format: Literal["diffusers", "kohya", "published"] = "diffusers"
    """diffusers: a folder for load_lora_weights; kohya: a file for ComfyUI and A1111; published: pytorch_model.bin."""


def export(options: ExportOptions) -> None:
    from dpt.checkpoints import open_checkpoint
    from dpt.checkpoints.export import export as write

    checkpoint = open_checkpoint(options.path)
    written = write(checkpoint, options.format, options.out)
    if checkpoint.lora:
        config = checkpoint.lora.record.config
        tensors = len(checkpoint.lora.tensors)
        print(f"LoRA of {tensors} tensors, rank {config.rank}, alpha {config.strength:g}: {written.file}")
    else:
        print(f"adapter: {written.file}")
    for note in written.notes:
        print(note)
