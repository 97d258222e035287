"""`dpt prefer check` and `dpt prefer train`: preference data before training, and the preference classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dpt.cli.train.options import LoadingOptions, LoopOptions, OptimisationOptions, OutputOptions
from dpt.embedded import EMBEDDED_CLIP, clip_location
from dpt.errors import fail

if TYPE_CHECKING:
    from dpt.data.preference.records import PreferenceRecord
    from dpt.score.preference import PreferenceModel


@dataclass(frozen=True)
class PreferCheckOptions:
    """Count what preference files hold and what is wrong with them; with --scorer, measure how well it predicts them.

    Exit code 2 if an image is missing or broken, or a user or a prompt is in two of the files.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """preference_train.json, preference_test.json, HPDv2, or pairs with the fields of Pick-a-Pic."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Default: preference_images beside each file."""
    decode: bool = False
    """Also read the pixels of every image: finds truncated files, and takes long."""
    scorer: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER|HUB_ID|FILE")] = ()
    """Measure top-1 and pairwise accuracy of these on the last file."""
    clip: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """The CLIP that a file of weights belongs to; also supplies a missing processor."""


def check(options: PreferCheckOptions) -> None:
    from dpt.data.preference.records import check_preferences, leakage, read_preferences

    if not options.files:
        fail("name the files to check, such as preference_train.json")
    parts = [read_preferences(file) for file in options.files]
    faults: list[str] = []
    for file, records in zip(options.files, parts, strict=True):
        report = check_preferences(records, folder_of(options, file), options.decode)
        print("\n  ".join([f"{file}:", *report.lines]))
        faults += [f"{len(report.broken)} images of {file}"] if report.broken else []
    for earlier, records in enumerate(parts[:-1]):
        if sentence := leakage(records, parts[-1]):
            print(f"{options.files[earlier]} and {options.files[-1]}: {sentence}")
            faults.append("the split into training and test")
    for name in options.scorer:
        print(measure(name, options, parts[-1]))
    if faults:
        fail(f"check {' and '.join(faults)} before training")


def folder_of(options: PreferCheckOptions, file: Path) -> Path:
    return file.parent / "preference_images" if options.images is None else options.images


def measure(name: str, options: PreferCheckOptions, records: Sequence[PreferenceRecord]) -> str:
    """Top-1 and pairwise accuracy of a scorer, each beside its chance; intervals are over records."""
    import numpy as np
    from tqdm import tqdm

    from dpt.data.images import read_image
    from dpt.intervals import bootstrap, bootstrap_ratio
    from dpt.objectives.losses import agreement
    from dpt.score.preference import open_preference_model

    folder = folder_of(options, options.files[-1])
    model = open_preference_model(clip_location(name), options.clip)
    results = []
    for record in tqdm(records, desc="scoring", unit="record", leave=False):
        images = [np.asarray(read_image(folder / picture, folder)[0]) for picture in record.pictures]
        results.append(agreement(model.scores(images, [record.prompt] * len(images)), record.ranks))
    top1 = bootstrap([[result.top1 for result in results]], (0, 1))
    pairwise = bootstrap_ratio([result.ordered for result in results], [result.pairs for result in results])
    chance = sum(result.chance for result in results) / len(results)
    return (
        f"{model.identity}: top-1 {top1.percent} %, by chance {100 * chance:.1f} %; pairwise {pairwise.percent} %, by "
        f"chance 50.0 %; {len(results)} records"
    )


V1 = OptimisationOptions(train_batch_size=5, learning_rate=1.7e-5, adam_weight_decay=1.2e-3, weight_decay_on="matrices")
"""The hyperparameters reported for HPS v1."""


@dataclass(frozen=True)
class PreferenceDataOptions:
    """Preference records and their images."""

    train_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """preference_train.json, HPDv2's train.json, or pairs with the fields of Pick-a-Pic (JSON or JSONL)."""
    test_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Records to validate on. Default: a part of the training records, sharing no user and no prompt with the rest."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Default: preference_images beside the training file."""
    test_fraction: float = 0.1
    """Fraction of the records to validate on, without --test_file."""
    split_seed: int = 0
    """Seed of the split into training and validation records, without --test_file."""
    val_batch_size: int = 16
    loading: LoadingOptions = field(default_factory=LoadingOptions)

    @property
    def image_folder(self) -> Path:
        assert self.train_file is not None
        return self.train_file.parent / "preference_images" if self.images is None else self.images


@dataclass(frozen=True)
class ClassifierOptions:
    clip: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID|FILE")] = EMBEDDED_CLIP
    """The CLIP or SigLIP to start from; or hpc.pth, HPS v2 or v2.1, with --clip_config."""
    clip_config: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """The CLIP model that a weights file belongs to."""
    visual_blocks: int = 10
    """Train the last blocks of the image tower; -1 trains all of it."""
    text_blocks: int = 6
    """Train the last blocks of the text tower; -1 trains all of it."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Number format of matrix products. Weights are always float32."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class PreferTrainOptions(LoopOptions):
    """Train a CLIP or SigLIP to predict which of several images people chose for a prompt. The same command resumes.

    The defaults are the hyperparameters reported for HPS v1. Exit code 75 means that the run was stopped by a signal
    and saved.
    """

    optimisation: OptimisationOptions = V1
    data: PreferenceDataOptions = field(default_factory=PreferenceDataOptions)
    classifier: ClassifierOptions = field(default_factory=ClassifierOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    @property
    def base_model(self) -> str:
        return self.classifier.clip


def main(arguments: Sequence[str] | None = None) -> int:
    from dpt.cli.train.main import run_to_exit_code

    return run_to_exit_code(PreferTrainOptions, "dpt prefer train", train, arguments)


def train(options: PreferTrainOptions) -> Any:
    from dpt.cli.train.setup import check_output, with_run_name

    check_options(options)
    check_output(options.output)
    options = replace(options, output=with_run_name(options.output, "preference", options))
    from dpt.backbone.device import resolve_matmul_dtype
    from dpt.cli.train.main import train_task
    from dpt.cli.train.setup import config_of_groups, loop_settings, start_processes
    from dpt.data.preference.source import PreferenceStream
    from dpt.score.preference import open_preference_model
    from dpt.training.engine.optim import require_eight_bit
    from dpt.training.tasks.preference import PreferenceTask, UnlockedBlocks

    blocks = UnlockedBlocks(options.classifier.visual_blocks, options.classifier.text_blocks)
    accelerator = start_processes(options)
    if options.optimisation.use_8bit_adam:
        require_eight_bit(accelerator.device)
    data = options.data
    train_records, test_records = open_records(options)
    model = open_preference_model(
        clip_location(options.classifier.clip), options.classifier.clip_config, str(accelerator.device)
    )
    if accelerator.is_main_process:
        announce(train_records, test_records, model)
    folder = data.image_folder
    validation = PreferenceStream(test_records, folder, model.inputs, 0, False, data.loading.corrupt_budget)
    precision = "bf16" if options.classifier.mixed_precision == "bf16" else "fp32"
    task = PreferenceTask(
        model, validation, blocks, data.val_batch_size, resolve_matmul_dtype(accelerator.device, precision)
    )
    stream = PreferenceStream(
        train_records, folder, model.inputs, options.optimisation.seed, True, data.loading.corrupt_budget
    )
    settings = loop_settings(options, len(stream), accelerator.num_processes, data.loading.dataloader_num_workers)
    flags = [options.optimisation, options.output]
    config = config_of_groups(
        flags,
        settings,
        task="preference",
        visual_blocks=blocks.visual,
        text_blocks=blocks.text,
        model_sha256=model.identity,
        data=stream.identity(),
        device=accelerator.device.type,
        dtype=options.classifier.mixed_precision,
    )
    return train_task(options, accelerator, task, stream, settings, config)


def check_options(options: PreferTrainOptions) -> None:
    data = options.data
    if data.train_file is None:
        fail("--train_file is missing: preference records to train on, such as preference_train.json")
    if data.val_batch_size < 1:
        fail(f"--val_batch_size must be at least 1, not {data.val_batch_size}")
    data.loading.check()
    if not 0 < data.test_fraction < 1:
        fail(f"--test_fraction is between 0 and 1, not {data.test_fraction}")


def open_records(options: PreferTrainOptions) -> tuple[list[PreferenceRecord], list[PreferenceRecord]]:
    """Training and validation records, without groups of one image, which have no loss."""
    from dpt.data.preference.records import read_preferences, split_records

    data = options.data
    assert data.train_file is not None
    records = read_preferences(data.train_file)
    if data.test_file is None:
        split = split_records(records, data.test_fraction, data.split_seed)
        train_records, test_records = split.train, split.test
    else:
        train_records, test_records = records, read_preferences(data.test_file)
    comparable = [record for record in train_records if len(record.pictures) > 1]
    return comparable or fail(f"{data.train_file} has no record with two images or more"), test_records


def announce(
    train_records: Sequence[PreferenceRecord], test_records: Sequence[PreferenceRecord], model: PreferenceModel
) -> None:
    from dpt.cli.common.console import warn
    from dpt.data.preference.records import shared_keys

    pictures = sum(len(record.pictures) for record in train_records)
    print(f"{len(train_records)} choices among {pictures} images, validated on {len(test_records)}; {model.identity}")
    if shared := shared_keys(train_records, test_records):
        warn(f"{len(shared)} users or prompts of the test records are in training too: {min(shared)!r} is one")
    prompts = {record.prompt for record in (*train_records, *test_records)}
    if cut := sum(model.inputs.is_cut(prompt) for prompt in prompts):
        warn(f"{cut} of {len(prompts)} prompts are longer than {model.inputs.length} tokens and are truncated")
