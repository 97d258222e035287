"""`dpt info`, `dpt export`, `dpt download` and `dpt probe`: describe, convert, download and measure checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dpt.embedded import EMBEDDED, checkpoint_path
from dpt.errors import fail

if TYPE_CHECKING:
    from dpt.backbone import Backbone, NoiseSchedule
    from dpt.data.stream import Stream
    from dpt.probes.probe import ProbeResult


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

    path = checkpoint_path(options.path)
    from dpt.checkpoints import open_checkpoint
    from dpt.checkpoints.open import describe, describe_model, format_summary

    if is_training_state(path):
        state = describe_training_state(path)
        print(json.dumps(state, indent=1) if options.json else format_training_state(state))
        return
    is_model = (path / "model_index.json").is_file()
    summary = describe_model(path) if is_model else describe(open_checkpoint(path))
    print(json.dumps(summary, indent=1) if options.json else format_summary(summary))


def is_training_state(path: Path) -> bool:
    from dpt.training.engine.run_folder import STATE, STEP_FOLDER

    return path.is_dir() and (bool(STEP_FOLDER.fullmatch(path.resolve().name)) or (path / STATE).is_file())


def describe_training_state(path: Path) -> dict[str, Any]:
    """Describe a training checkpoint: its step, trained parts, options, and the path of its result."""
    from dpt.training.engine import run_folder
    from dpt.training.engine.run_folder import CONFIG
    from dpt.untrusted import read_json_object

    tensors, state = run_folder.load(path)
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
    path = checkpoint_path(options.path)
    from dpt.checkpoints import open_checkpoint
    from dpt.checkpoints.export import export_checkpoint

    checkpoint = open_checkpoint(path)
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
    for name in ("repo", "file"):
        if not getattr(options, name):
            fail(f"--{name} is empty")
    if options.sha256 is not None and not (len(options.sha256) == 64 and set(options.sha256.lower()) <= set(HEX)):
        fail(f"--sha256 takes 64 hexadecimal digits, not {options.sha256!r}")
    if not options.timeout > 0:
        fail(f"--timeout must be positive, not {options.timeout:g}")
    from dpt.checkpoints.export import DownloadSpec, download_checkpoint

    spec = DownloadSpec(options.repo, options.file, options.revision, options.size, (options.sha256 or "").lower())
    print(download_checkpoint(spec, options.out, options.endpoint, options.timeout))


SEED = 0


@dataclass(frozen=True)
class ProbeOptions:
    """Measure the matching and grounding accuracy of adapters on fixed examples and noise.

    Matching: which of two captions fits an image, which of two images fits a caption. Grounding: where an expression is
    in an image. Writes probe.json, table.md and probe.png.
    """

    adapters: tyro.conf.Positional[tuple[Path, ...]]
    """Adapter folders, or results of stage 2, which are measured with their LoRA."""
    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    """The frozen model whose features the adapters read."""
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Revision of a hub model."""
    allow_other_base: bool = False
    """Use adapters that were trained on another base model, with a warning."""
    out: Path = Path("outputs/probe")
    """Where the results go."""
    timesteps: tuple[int, ...] = (20, 100, 200, 300, 400, 500, 600, 700, 800, 900)
    """The timesteps to measure at."""
    headline: int = 500
    """The timestep of the tables that show only one."""
    scenes: Literal["pocket", "full"] = "pocket"
    """World of the rendered scenes, without --data_root."""
    num: int = 512
    """Number of scenes, none of which is in training or validation."""
    data_root: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """The folder that holds coco/, ReC/ and ITM/, to use instead of scenes."""
    datasets: tuple[str, ...] = ("refcoco:val", "refcoco+:val", "refcocog:val")
    """Referring expressions of the data folder, as DATASET:SPLIT."""
    resolution: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """Side of the square images. Default: the size the model was trained at."""
    center_crop: bool = False
    val_batch_size: int = 32
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Number format of the frozen model."""


def probe(options: ProbeOptions) -> None:
    check(options)
    from dpt.backbone import open_backbone
    from dpt.embedded import model_location

    dtype = "float32" if options.mixed_precision == "no" else options.mixed_precision
    backbone = open_backbone(
        model_location(options.pretrained_model_name_or_path), revision=options.revision, dtype=dtype
    )
    check_timesteps(options, backbone.noise)
    streams = open_streams(options, backbone)
    results = [measure(folder, options, backbone, streams) for folder in options.adapters]
    print(write(results, options, backbone))


def check(options: ProbeOptions) -> None:
    if not options.adapters:
        fail("give at least one adapter folder to probe")
    if not options.timesteps or options.headline not in options.timesteps:
        fail(f"--headline {options.headline} is not among the --timesteps: give one of them as --headline")
    for name in ("num", "val_batch_size"):
        if getattr(options, name) < 1:
            fail(f"--{name} must be at least 1, not {getattr(options, name)}")


def check_timesteps(options: ProbeOptions, noise: NoiseSchedule) -> None:
    last = noise.num_timesteps - 1
    for t in options.timesteps:
        if not 0 <= t <= last:
            fail(f"--timesteps are between 0 and {last}, not {t}")


def open_streams(options: ProbeOptions, backbone: Backbone) -> Mapping[str, Stream]:
    """Held-out examples by name, always the same."""
    from dpt.data.files.reading import DataRoot
    from dpt.data.files.source import expression_files, matching_files
    from dpt.data.images import Framing
    from dpt.data.scenes.source import SceneSource
    from dpt.data.scenes.world import WORLDS
    from dpt.data.stream import Stream

    framing = Framing.for_model(backbone, options.resolution, options.center_crop)
    if options.data_root is None:
        source = SceneSource(WORLDS[options.scenes], SEED, "test", framing, options.num)
        return {"scenes": Stream(source, SEED, shuffle=False)}
    root = DataRoot.open(options.data_root)
    streams = {"captions": Stream(matching_files(root, "val", framing, SEED), SEED, shuffle=False)}
    for name in options.datasets:
        dataset, _, split = name.partition(":")
        files = expression_files(root, dataset, split or "val", framing, SEED)
        streams[name] = Stream(files, SEED, shuffle=False)
    return streams


def measure(folder: Path, options: ProbeOptions, backbone: Backbone, streams: Mapping[str, Stream]) -> ProbeResult:
    from tqdm import tqdm

    from dpt.checkpoints.open import open_checkpoint
    from dpt.probes.probe import Probe, ProbeResult, count_answers, denoising_error

    def error() -> float:
        total, count = denoising_error(backbone, streams, options.val_batch_size)
        return total / count

    checkpoint = open_checkpoint(folder)
    if checkpoint.adapter is None:
        fail(f"{folder} holds no adapter: there is nothing to probe")
    lora = checkpoint.attach(backbone, options.allow_other_base)
    feature = checkpoint.adapter.config.unet_feature
    name = f"{feature}, tuned" if lora else feature
    probe = Probe(backbone, checkpoint.adapter.to(backbone.device), streams, options.timesteps, options.val_batch_size)
    answers = tqdm(probe.answers(), desc=f"{folder} ({name})", unit="answer", leave=False)
    cells = tuple(count_answers(answers))
    if lora is None:
        return ProbeResult(name, str(folder), cells)
    tuned = error()
    lora.remove()
    return ProbeResult(name, str(folder), cells, (tuned, error()))


def write(results: list[ProbeResult], options: ProbeOptions, backbone: Backbone) -> str:
    """Write the results into the folder; returns the tables."""
    import json

    from dpt.cli.common.console import versions
    from dpt.probes.probe import plot, report
    from dpt.records import to_plain

    tables = report(results, options.headline)
    flags = to_plain(options)
    record = {
        "model": backbone.model_hash,
        "asked": {key: value for key, value in flags.items() if key not in ("adapters", "out")},
        "versions": versions(),
        "adapters": [result.plain() for result in results],
    }
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "probe.json").write_text(json.dumps(record, indent=1) + "\n")
        (options.out / "table.md").write_text(tables)
        plot(results, options.headline, options.out / "probe.png")
    except OSError as error:
        fail(f"cannot write into {options.out}: {error.strerror or error}")
    return tables
