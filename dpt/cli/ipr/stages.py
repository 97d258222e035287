"""`dpt ipr prompts|sample|detect|relabel|merge|train`: the stages one by one, on files in the published formats."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dpt.claims.relabel import RelabelConfig
from dpt.cli.common.console import warn_of_unknown_captions
from dpt.distributed import processes, take_own_gpu
from dpt.embedded import EMBEDDED
from dpt.errors import fail
from dpt.methods.ipr.config import DetectorConfig, FineTuneConfig, MergeConfig, PromptConfig, SampleConfig, WeightConfig
from dpt.training.engine.observers import EXIT_STOPPED

if TYPE_CHECKING:
    from dpt.claims.facts import Prompt
    from dpt.evaluation.suites.base import Suite
    from dpt.methods.ipr.datasets import OpenedDetector
    from dpt.methods.ipr.sampling import ModelState


Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class IPRModelOptions:
    """The model of a round."""

    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    ckpt: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER|FILE")] = None
    """A LoRA to sample with, or to start the training from."""
    round: int = 0
    """Number of the round. File names and noise depend on it, and so does the entry of --num_train_epochs, if that has
    several."""
    seed: int = 0
    mixed_precision: Annotated[Precision | None, tyro.conf.arg(metavar="no|fp16|bf16")] = None
    """Number format of the UNet and the text encoder; default: by the device."""

    @property
    def state(self) -> ModelState:
        from dpt.methods.ipr.sampling import ModelState

        return ModelState(self.pretrained_model_name_or_path, self.ckpt)


def dtype_of(precision: Precision | None) -> str | None:
    return "float32" if precision == "no" else precision


def show_progress(what: str, total: int) -> Callable[[int], None]:
    from tqdm import tqdm

    bar = tqdm(total=total, desc=what, unit="image", leave=False)

    def done(n: int) -> None:
        bar.update(n)
        if bar.n >= total:
            bar.close()

    return done


def no_progress(what: str, total: int) -> Callable[[int], None]:
    return lambda n: None


def detector_for(config: DetectorConfig, suite: Suite, prompts: Iterable[Prompt]) -> OpenedDetector:
    """The detector that the flags choose, or else the default one of the suite."""
    from dpt.methods.ipr.datasets import open_detector

    assert suite.detect_config is not None
    coloured = any(noun.colour for prompt in prompts for noun in prompt.nouns)
    return open_detector(config, suite.detector or "owlv2", suite.detect_config, coloured)


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class IPRPromptsOptions:
    """Write the prompts of a suite as two JSON files: prompts to train on, and held-out prompts to measure on."""

    out: Path
    """The folder for prompts.json and held_out.json."""
    prompt: PromptConfig = field(default_factory=PromptConfig)


def prompts(options: IPRPromptsOptions) -> None:
    from dpt.methods.ipr.prompts import load_prompts, write_prompts

    training, held_out = load_prompts(options.prompt)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, part in (("prompts.json", training), ("held_out.json", held_out)):
        if (options.out / name).exists():
            fail(f"{options.out / name} already exists; nothing was written")
        write_prompts(part.prompts, options.out / name)
        print(f"{options.out / name}: {len(part.prompts)} prompts")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class IPRSampleOptions:
    """Sample images for the prompts of a file. An interrupted run continues."""

    prompts: tyro.conf.Positional[Path]
    """A JSON list in the format of SR2D, or a file of `dpt ipr prompts`."""
    out: Path
    model: IPRModelOptions = field(default_factory=IPRModelOptions)
    sample: SampleConfig = field(default_factory=SampleConfig)


def sample(options: IPRSampleOptions) -> None:
    from dpt.methods.ipr.prompts import read_prompts
    from dpt.methods.ipr.sampling import sample as sample_images

    model = options.model
    if model.round < 0:
        fail(f"--round must be at least 0, not {model.round}")
    rows = read_prompts(options.prompts)
    with processes() as group:
        take_own_gpu()
        progress = show_progress if group.is_main else no_progress
        sample_images(
            rows, model.state, options.sample, options.out, round_=model.round, seed=model.seed,
            dtype=dtype_of(model.mixed_precision), group=group,
            on_done=progress("sampling", len(rows) * options.sample.per_prompt),
        )  # fmt: skip
        if group.is_main:
            print(f"{options.out}: {len(rows)} prompts, {len(rows) * options.sample.per_prompt} images")
            print(f"next: dpt ipr detect {options.out} --out FOLDER")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class IPRDetectOptions:
    """Detect the nouns of their prompts in the images that `dpt ipr sample` wrote."""

    samples: tyro.conf.Positional[Path]
    """A folder of `dpt ipr sample`."""
    out: Path
    detect: DetectorConfig = field(default_factory=DetectorConfig)


def detect(options: IPRDetectOptions) -> None:
    from dpt.methods.ipr.datasets import detect as detect_images
    from dpt.methods.ipr.prompts import suite_of_file
    from dpt.methods.ipr.sampling import PROMPTS, images_in

    total = images_in(options.samples)
    suite = suite_of_file(options.samples / PROMPTS)
    with processes() as group:
        take_own_gpu()
        progress = show_progress if group.is_main else no_progress
        detector = detector_for(options.detect, suite, suite.prompts)
        on_done = progress("detecting", total)
        stage = detect_images(options.samples, detector, options.out, group=group, on_done=on_done)
        if group.is_main:
            record = stage.record()
            print(
                f"{options.out}: {record['boxes']} boxes in {record['images']} images, "
                f"{record['images_without_boxes']} of them without any, by {detector.identity}"
            )
            print(f"next: dpt ipr relabel {options.samples} --detections {options.out} --out FOLDER")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class IPRRelabelOptions:
    """Write the images with captions that agree with the detections, and with weights."""

    samples: tyro.conf.Positional[Path]
    """A folder of `dpt ipr sample`."""
    detections: Path
    """A folder of `dpt ipr detect`, or a detection dump in the published format."""
    out: Path
    detector: str | None = None
    """Refuse detections by any other detector."""
    relabel: RelabelConfig = field(default_factory=RelabelConfig)
    weight: WeightConfig = field(default_factory=WeightConfig)


def relabel(options: IPRRelabelOptions) -> None:
    from dpt.methods.ipr.datasets import relabel_images

    counts = relabel_images(
        options.samples, options.detections, options.out, options.relabel, options.weight, options.detector
    )
    print(counts.text)
    print(f"next: dpt ipr train {options.out} --out FOLDER, or first dpt ipr merge with earlier rounds")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class IPRMergeOptions:
    """Merge relabelled folders into one, in the order of their rounds."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of `dpt ipr relabel`, the first round first."""
    out: Path
    merging: MergeConfig = field(default_factory=lambda: MergeConfig(merge="all"))


def merge(options: IPRMergeOptions) -> None:
    from dpt.methods.ipr.datasets import merge as merge_folders

    if not options.folders:
        fail("name the folders to merge")
    chosen = [options.folders[number] for number in options.merging.rounds(len(options.folders) - 1)]
    stage = merge_folders(chosen, options.out, options.merging)
    print(f"{options.out}: {stage.record()['pictures']} images from {len(chosen) + len(options.merging.also)} folders")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class IPRTrainOptions:
    """Train a LoRA or the whole UNet on a folder of images with captions and weights, by the denoising loss."""

    data: tyro.conf.Positional[Path]
    """A folder of images with captions and weights, as of `dpt ipr merge`."""
    out: Path
    model: IPRModelOptions = field(default_factory=IPRModelOptions)
    train: FineTuneConfig = field(default_factory=FineTuneConfig)


def train(options: IPRTrainOptions) -> None:
    from dpt.data.folder import read_picture_folder
    from dpt.methods.ipr.training import train as train_round

    model = options.model
    with processes(cuda=True) as group:
        take_own_gpu()
        if group.is_main:
            captions = (row.caption for row in read_picture_folder(options.data))
            warn_of_unknown_captions(model.pretrained_model_name_or_path, captions)
        trained = train_round(
            options.data, model.state, options.train, options.out, round_=model.round, seed=model.seed,
            dtype=dtype_of(model.mixed_precision), group=group,
        )  # fmt: skip
    if trained.model is None:
        print(f"stopped after step {trained.steps}: run the same command again to continue")
        sys.exit(EXIT_STOPPED)
    if group.is_main:
        print(f"trained to step {trained.steps}: {trained.model.lora or trained.model.base}")
