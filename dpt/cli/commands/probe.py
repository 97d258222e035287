"""`dpt probe`: what trained adapters know, by feature, timestep and type of negative."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dpt.embedded import EMBEDDED
from dpt.errors import fail

if TYPE_CHECKING:
    from dpt.backbone import Backbone, NoiseSchedule
    from dpt.data.stream import Stream
    from dpt.probes.report import ProbeResult


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
    from dpt.data.files.root import DataRoot
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
    from dpt.probes.probe import Probe, count_answers, denoising_error
    from dpt.probes.report import ProbeResult

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
    from dpt.probes.report import plot, report
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
