"""`dpt info`, `dpt export` and `dpt download`: describe, convert and download checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dpt.embedded import embedded_path
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

    path = embedded_path(options.path)
    if is_training_state(path):
        state = describe_training_state(path)
        print(json.dumps(state, indent=1) if options.json else format_training_state(state))
        return
    is_model = (path / "model_index.json").is_file()
    summary = describe_model(path) if is_model else describe(open_checkpoint(path))
    print(json.dumps(summary, indent=1) if options.json else format_summary(summary))


def is_training_state(path: Path) -> bool:
    from dpt.training.engine.checkpoint import STATE, STEP_FOLDER

    return path.is_dir() and (bool(STEP_FOLDER.fullmatch(path.resolve().name)) or (path / STATE).is_file())


def describe_training_state(path: Path) -> dict[str, Any]:
    """Describe a training checkpoint: its step, trained parts, options, and the path of its result."""
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


HEX = "0123456789abcdef"


@dataclass(frozen=True)
class DownloadOptions:
    """Download the published checkpoint. An interrupted download leaves no partial file."""

    repo: Annotated[str, tyro.conf.arg(metavar="HUB_ID")] = "leigangqu/DPT-T2I"
    """Repository on the hub."""
    file: str = "pytorch_model.bin"
    """Name of the file in the repository; it keeps the name."""
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Branch, tag or commit. Default: the newest."""
    out: Path = Path("ckpt/dpt-v2.1")
    """Folder for the file."""
    size: Annotated[int | None, tyro.conf.arg(metavar="BYTES")] = None
    """Refuse a file of another size."""
    sha256: Annotated[str | None, tyro.conf.arg(metavar="HEX")] = None
    """Refuse a file with another SHA-256."""
    endpoint: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """URL of another hub; your token is not sent to it. Default: HF_ENDPOINT, or the public hub."""
    timeout: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 300.0
    """Give up after this many seconds without progress."""


def download(options: DownloadOptions) -> None:
    from dpt.checkpoints.download import DownloadSpec, download_checkpoint

    for name in ("repo", "file"):
        if not getattr(options, name):
            fail(f"--{name} is empty")
    if options.sha256 is not None and not (len(options.sha256) == 64 and set(options.sha256.lower()) <= set(HEX)):
        fail(f"--sha256 takes 64 hexadecimal digits, not {options.sha256!r}")
    if not options.timeout > 0:
        fail(f"--timeout must be positive, not {options.timeout:g}")
    spec = DownloadSpec(options.repo, options.file, options.revision, options.size, (options.sha256 or "").lower())
    print(download_checkpoint(spec, options.out, options.endpoint, options.timeout))
