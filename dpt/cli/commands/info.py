"""`dpt info`: what a trained result or a model is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class InfoOptions:
    """Say what is in a result, a LoRA file or a model, having checked all of it."""

    path: tyro.conf.Positional[Path]
    """A result's folder, its adapter/ or lora/, the published checkpoint, a LoRA file, or a model's folder."""
    json: bool = False
    """For programs."""


def info(options: InfoOptions) -> None:
    import json

    from dpt.checkpoints import open_checkpoint
    from dpt.checkpoints.describe import describe, describe_model, format_summary

    if (options.path / "model_index.json").is_file():
        found = describe_model(options.path)
    else:
        found = describe(open_checkpoint(options.path))
    print(json.dumps(found, indent=1) if options.json else format_summary(found))
