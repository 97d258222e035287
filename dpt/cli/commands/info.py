"""`dpt info`: describe a checkpoint or a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class InfoOptions:
    """Check a checkpoint, a LoRA file or a model, and describe it."""

    path: tyro.conf.Positional[Path]
    """A result's folder, its adapter/ or lora/, the published checkpoint, a LoRA file, or a model's folder."""
    json: bool = False
    """Print JSON."""


def info(options: InfoOptions) -> None:
    import json

    from dpt.checkpoints import open_checkpoint
    from dpt.checkpoints.describe import describe, describe_model, format_summary

    if (options.path / "model_index.json").is_file():
        summary = describe_model(options.path)
    else:
        summary = describe(open_checkpoint(options.path))
    print(json.dumps(summary, indent=1) if options.json else format_summary(summary))
