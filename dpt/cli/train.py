"""`train_stage1.py`: from the published flags to a task, its data and the loop."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from dpt.cli.console import plain_warnings
from dpt.cli.flags import parse_options
from dpt.cli.train_options import (
    NEVER_READ,
    REASONS,
    WARNED,
    AdapterOptions,
    DataOptions,
    HubOptions,
    ModelOptions,
    ObjectiveOptions,
    OptimisationOptions,
    OutputOptions,
    RefusedOptions,
)
from dpt.cli.txt2img import model_location
from dpt.errors import UserError, fail, run_command
from dpt.training.settings import Settings
from dpt.training.signals import STOPPED

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dpt.backbone import Backbone
    from dpt.cli.hub import Hub
    from dpt.cli.train_cache import Cache
    from dpt.data.example import Source
    from dpt.data.framing import Framing
    from dpt.training.loop import Outcome
    from dpt.training.tasks.stage1 import Stage1

STEPS_ON_SCENES = 3000
EPOCHS_ON_FILES = 100
ADAPTER_FOLDER = "adapter"
CURVE = "curve.png"


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Stage1Options:
    """Stage 1: train an adapter to match and to ground by the features of a frozen UNet.

    Stop and repeat at will: the same command goes on where it was left. Exit code 75 says that a run was asked to stop
    and has saved what it had.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    optimisation: OptimisationOptions = field(default_factory=OptimisationOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    hub: HubOptions = field(default_factory=HubOptions)
    refused: RefusedOptions = field(default_factory=RefusedOptions)

    @property
    def root(self) -> Path:
        return self.output.output_dir / self.output.run_name


MAY_CHANGE = {
    # where things are; the model itself and what is read of a cache are recorded by their hashes
    "pretrained_model_name_or_path", "cache", "revision", "output_dir", "run_name", "logging_dir", "report_to",
    # how the work is dealt out; the effective batch is recorded
    "train_batch_size", "gradient_accumulation_steps", "val_batch_size", "dataloader_num_workers",
    "gradient_checkpointing",
    # how often something is saved, said or looked at
    "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "reset_optimizer", "logging_steps",
    "validation_steps", "max_bad_steps", "no_detection", "val_fullset", "validation_scenes", "combine_datasets_val",
    "dataset_name_val",
    # recorded as the number of steps
    "num_train_epochs", "max_train_steps",
}  # fmt: skip
"""Options that a resumed run may have otherwise than the run that it resumes."""

ONCE_REFUSED = {"use_8bit_adam", "no_freeze_text_encoder"}
"""Flags that no run could have at first: recorded where they are given, so that runs without them can go on."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(Stage1Options, sys.argv[1:] if arguments is None else arguments, "train_stage1.py")
    reached: list[Outcome] = []
    with plain_warnings():
        code = run_command(lambda: reached.append(run(options)))
    return code or (0 if reached[0].finished else STOPPED)


def run(options: Stage1Options) -> Outcome:
    check(options)
    from dpt.cli.hub import open_hub
    from dpt.cli.train_cache import open_cache
    from dpt.cli.train_data import framing_of
    from dpt.training.eight_bit import require_eight_bit
    from dpt.training.loop import Loop
    from dpt.training.trackers import start_trackers

    accelerator = start_processes(options)
    if options.optimisation.use_8bit_adam:
        require_eight_bit(accelerator.device)
    hub = open_hub(options.hub, options.root) if accelerator.is_main_process else None
    backbone = open_backbone(options, accelerator)
    framing = framing_of(options.data, backbone)
    cache = open_cache(options.data, framing, backbone)
    backbone.known_texts = cache.texts
    task, source = build(options, backbone, framing, cache)
    if accelerator.is_main_process:
        for sentence in cache.said:
            print(sentence)
    settings = settings_for(options, len(source), accelerator.num_processes)
    record = {**recorded(options, settings), "model_sha256": backbone.model_hash, "cache": cache.identity}
    from dpt.data.stream import Stream

    stream = Stream(source, settings.seed, corrupt_budget=options.data.corrupt_budget)
    loop = Loop(task, stream, settings, options.root, record, accelerator)
    start_trackers(accelerator, record)
    try:
        outcome = loop.run(options.output.resume_from_checkpoint, options.output.reset_optimizer)
    except MemoryError as error:
        raise UserError(OUT_OF_MEMORY) from error
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise UserError(OUT_OF_MEMORY) from error
    finally:
        accelerator.end_training()
    if accelerator.is_main_process:
        finish(options, task, outcome, hub)
    return outcome


OUT_OF_MEMORY = (
    "the memory is not enough: lower --train_batch_size (and raise --gradient_accumulation_steps as much), give "
    "--gradient_checkpointing, or read a feature of fewer places"
)


def finish(options: Stage1Options, task: Stage1, outcome: Outcome, hub: Hub | None) -> None:
    import shutil

    from dpt.training.curve import plot_curve

    if not outcome.finished:
        print(f"stopped after step {outcome.step}: run the same command again to go on")
        return
    folder, curve = options.root / ADAPTER_FOLDER, options.root / CURVE
    shutil.rmtree(folder, ignore_errors=True)
    task.export(folder, options.model.pretrained_model_name_or_path)
    plot_curve(options.root, curve)
    print(f"trained to step {outcome.step}: the adapter is in {folder}, the course of its training in {curve}")
    if hub is not None:
        print(f"uploaded to {hub.push(options.root, folder, curve)}")


def check(options: Stage1Options) -> None:
    """What can be found wrong without loading anything."""
    untouched = RefusedOptions()
    for one in fields(RefusedOptions):
        if getattr(options.refused, one.name) == getattr(untouched, one.name):
            continue
        if one.name in WARNED:
            warnings.warn(f"--{one.name} {WARNED[one.name]}", stacklevel=2)
        else:
            fail(f"--{one.name} {REASONS.get(one.name, NEVER_READ)}")
    if options.data.data_root is None and options.data.center_crop:
        warnings.warn("--center_crop changes nothing on rendered scenes, which are square", stacklevel=2)
    for name in ("val_batch_size", "validation_scenes"):
        if getattr(options.data, name) < 1:
            fail(f"--{name} must be at least 1, not {getattr(options.data, name)}")
    if options.data.corrupt_budget < 0:
        fail("--corrupt_budget cannot be negative")
    for name in ("hub_token", "hub_model_id"):
        if getattr(options.hub, name) is not None and not options.hub.push_to_hub:
            fail(f"--{name} does nothing without --push_to_hub")
    if options.adapter.no_freeze_text_encoder:
        check_text_encoder(options.adapter, options.objective)
    settings_for(options, 1, 1)


def check_text_encoder(adapter: AdapterOptions, objective: ObjectiveOptions) -> None:
    if adapter.text_encoder_type == "backbone":
        fail(
            "--no_freeze_text_encoder needs an encoder of its own, as --text_encoder_type roberta-base: the frozen "
            "model's also says to the UNet what to draw, in states that the UNet would no longer understand"
        )
    if adapter.no_contrastive_align_loss or not objective.contrastive_align_loss_coef:
        fail("--no_freeze_text_encoder trains by the contrastive align loss alone, and this run is without it")


def settings_for(options: Stage1Options, examples: int, processes: int) -> Settings:
    flat = {**asdict(options.data), **asdict(options.optimisation), **asdict(options.output)}
    known = {one.name for one in fields(Settings)}
    o = options.optimisation
    effective = options.data.train_batch_size * o.gradient_accumulation_steps * processes
    settings = {name: value for name, value in flat.items() if name in known}
    settings["max_train_steps"] = _steps(options, examples, effective)
    if o.scale_lr:
        settings["learning_rate"] = o.learning_rate * effective
    return Settings(**settings)


def _steps(options: Stage1Options, examples: int, effective: int) -> int:
    o = options.optimisation
    if o.max_train_steps is not None:
        return o.max_train_steps
    if o.num_train_epochs is None and options.data.data_root is None:
        return STEPS_ON_SCENES
    epochs = EPOCHS_ON_FILES if o.num_train_epochs is None else o.num_train_epochs
    if epochs < 1:
        fail(f"--num_train_epochs must be at least 1, not {epochs}")
    return -(-epochs * examples // max(1, effective))


def recorded(options: Stage1Options, settings: Settings) -> dict[str, Any]:
    """What decides what the run computes."""
    from dpt.records import to_plain
    from dpt.training.rates import FLAT

    groups = {name: group for name, group in to_plain(options).items() if name not in ("refused", "hub")}
    flat = {name: value for group in groups.values() for name, value in group.items() if name not in MAY_CHANGE}
    flat = {name: value for name, value in flat.items() if name not in ONCE_REFUSED or value}
    if settings.lr_scheduler in FLAT:  # then it does not matter to any step where the run ends
        return flat
    return {**flat, "max_train_steps": settings.max_train_steps}


def start_processes(options: Stage1Options) -> Accelerator:
    """Accelerate says which process this is and on which device; number formats are the backbone's own affair."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, ProjectConfiguration

    from dpt.training.trackers import choose_trackers

    told = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if told not in ("1", str(options.optimisation.gradient_accumulation_steps)):
        fail(f"the launcher's --gradient_accumulation_steps {told} is not read: give it to train_stage1.py")
    accelerator = Accelerator(
        mixed_precision="no",
        log_with=choose_trackers(options.output.report_to) or None,
        project_config=ProjectConfiguration(str(options.root), str(options.root / options.output.logging_dir)),
    )
    supported = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in supported:
        fail(f"{accelerator.distributed_type} is not supported: one model per device is")
    return accelerator


def open_backbone(options: Stage1Options, accelerator: Accelerator) -> Backbone:
    import torch

    from dpt.backbone import Backbone

    model = options.model
    # A launcher that was told nothing says "no", so its "no" asks for nothing.
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    asked = model.mixed_precision or (None if launched == "no" else launched)
    if model.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    backbone = Backbone.open(
        model_location(model.pretrained_model_name_or_path),
        revision=model.revision,
        device=accelerator.device,
        dtype="float32" if asked == "no" else asked,
        prediction_type=model.prediction_type,
    )
    if model.enable_xformers_memory_efficient_attention:
        use_xformers(backbone)
    return backbone


def use_xformers(backbone: Backbone) -> None:
    from importlib.util import find_spec

    if backbone.device.type == "cpu" or find_spec("xformers") is None:
        why = "runs on GPUs only" if backbone.device.type == "cpu" else "is not installed"
        warnings.warn(f"xformers {why}: using PyTorch's own attention", stacklevel=2)
        return
    backbone.unet.enable_xformers_memory_efficient_attention()


def build(options: Stage1Options, backbone: Backbone, framing: Framing, cache: Cache) -> tuple[Stage1, Source]:
    """The task, and what it is trained on."""
    from dpt.cli.train_data import open_data
    from dpt.cli.train_stage1 import build_stage1

    training, validation = open_data(options.data, framing, options.optimisation.seed, cache.latents)
    parts = options.model, options.adapter, options.objective
    return build_stage1(*parts, backbone, validation, options.data.val_batch_size, options.optimisation.seed), training
