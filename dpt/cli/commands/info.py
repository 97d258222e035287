"""`dpt info`: describe a checkpoint, a training state or a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from dpt.errors import fail


@dataclass(frozen=True)
class InfoOptions:
    """Check a checkpoint, a LoRA file, a training state or a model, and describe it."""

    path: tyro.conf.Positional[Path]
    """A result's folder, its adapter/ or lora/, the published checkpoint, a LoRA file, a run's checkpoint-STEP, or a
    model's folder."""
    json: bool = False
    """Print JSON."""


def info(options: InfoOptions) -> None:
    import json

    from dpt.checkpoints import open_checkpoint
    from dpt.checkpoints.describe import describe, describe_model, format_summary

    if is_training_state(options.path):
        state = describe_training_state(options.path)
        print(json.dumps(state, indent=1) if options.json else format_training_state(state))
        return
    if (options.path / "model_index.json").is_file():
        summary = describe_model(options.path)
    else:
        summary = describe(open_checkpoint(options.path))
    print(json.dumps(summary, indent=1) if options.json else format_summary(summary))


def is_training_state(path: Path) -> bool:
    from dpt.training.engine.checkpoint import STATE, STEP_FOLDER

    return path.is_dir() and (bool(STEP_FOLDER.fullmatch(path.resolve().name)) or (path / STATE).is_file())


def describe_training_state(path: Path) -> dict[str, Any]:
    """What a run saved to resume from: its step, what it trains, its options, and where its result is."""
    from dpt.training.engine import checkpoint
    from dpt.training.engine.run_folder import CONFIG
    from dpt.untrusted import read_json_object

    tensors, state = checkpoint.load(path)
    weights = tensors.get("weights", {})
    if not weights:
        fail(f"the training state {path} holds no weights")
    run = path.resolve().parent
    trains: dict[str, int] = {}
    for key, tensor in weights.items():
        trains[_part(key)] = trains.get(_part(key), 0) + tensor.numel()
    return {
        "path": str(path),
        "kind": "training state",
        "step": state["step"],
        "trains": trains,
        "options": read_json_object(run / CONFIG) if (run / CONFIG).is_file() else {},
        "results": [str(path.parent / name) for name in ("adapter", "lora") if (run / name).is_dir()],
    }


def _part(key: str) -> str:
    """The part of the model that a trained tensor belongs to; stage 1 trains an adapter alone, without a prefix."""
    first = key.split(".")[0]
    return first if first in ("adapter", "lora") else "adapter"


def format_training_state(state: dict[str, Any]) -> str:
    trains = ", ".join(f"{name} ({count:,} values)" for name, count in state["trains"].items())
    result = " and ".join(state["results"])
    pending = "none yet: the same training command continues from here and writes it one folder up"
    lines = [
        f"{state['path']}: training state after step {state['step']}, to resume from; not a result",
        "",
        f"  trains   {trains}",
        f"  result   {result or pending}",
    ]
    options = {name: value for name, value in state["options"].items() if value is not None}
    width = max(map(len, options), default=0)
    rows = [f"  {name:<{width}}  {value}" for name, value in options.items()]
    return "\n".join([*lines, *(["", "options", *rows] if rows else [])])
