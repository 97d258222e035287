"""`dpt export`: write a checkpoint in the format of another program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class CheckpointExportOptions:
    """Write the LoRA of a checkpoint (in the published layout its adapter too) for other programs. Never overwrites."""

    path: tyro.conf.Positional[Path]
    """A result's folder, its adapter/ or lora/, the published checkpoint, or a LoRA file of diffusers or kohya."""
    out: Path
    """A new folder, or for kohya the name of a .safetensors file."""
    format: Literal["diffusers", "kohya", "published"] = "diffusers"
    """diffusers: a folder for load_lora_weights; kohya: a file for ComfyUI and A1111; published: pytorch_model.bin."""


def export(options: CheckpointExportOptions) -> None:
    from dpt.checkpoints import open_checkpoint
    from dpt.checkpoints.export import export_checkpoint

    checkpoint = open_checkpoint(options.path)
    result = export_checkpoint(checkpoint, options.format, options.out)
    if checkpoint.lora:
        config = checkpoint.lora.record.config
        tensors = len(checkpoint.lora.tensors)
        print(f"LoRA of {tensors} tensors, rank {config.rank}, alpha {config.resolved_alpha:g}: {result.file}")
    else:
        print(f"adapter: {result.file}")
    for note in result.notes:
        print(note)
