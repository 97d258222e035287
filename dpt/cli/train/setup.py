"""From options to what a run needs: processes, the model, the loop's settings, the record of what decides."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from dpt.cli.train.options import TrainOptions
from dpt.embedded import model_location
from dpt.errors import fail
from dpt.training.engine.settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dpt.backbone import Backbone


STEPS_ON_SCENES = 3000

EPOCHS_ON_FILES = 100


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


YOUNGER = {"use_8bit_adam", "no_freeze_text_encoder", "ema_decay", "compile", "channels_last"}
"""Flags that no run could have at first: recorded where they are given, so that runs without them can go on."""


def settings_for(options: TrainOptions, examples: int, processes: int) -> Settings:
    flat = {**asdict(options.data), **asdict(options.optimisation), **asdict(options.output)}
    known = {one.name for one in fields(Settings)}
    o = options.optimisation
    effective = options.data.train_batch_size * o.gradient_accumulation_steps * processes
    settings = {name: value for name, value in flat.items() if name in known}
    settings["max_train_steps"] = _steps(options, examples, effective)
    if o.scale_lr:
        settings["learning_rate"] = o.learning_rate * effective
    return Settings(**settings)


def _steps(options: TrainOptions, examples: int, effective: int) -> int:
    o = options.optimisation
    if o.max_train_steps is not None:
        return o.max_train_steps
    if o.num_train_epochs is None and options.data.data_root is None:
        return STEPS_ON_SCENES
    epochs = EPOCHS_ON_FILES if o.num_train_epochs is None else o.num_train_epochs
    if epochs < 1:
        fail(f"--num_train_epochs must be at least 1, not {epochs}")
    return -(-epochs * examples // max(1, effective))


def recorded(options: TrainOptions, settings: Settings) -> dict[str, Any]:
    """What decides what the run computes."""
    from dpt.records import to_plain
    from dpt.training.engine.settings import FLAT

    groups = {name: group for name, group in to_plain(options).items() if name not in ("refused", "hub")}
    flat = {name: value for group in groups.values() for name, value in group.items() if name not in MAY_CHANGE}
    flat = {name: value for name, value in flat.items() if name not in YOUNGER or value}
    if settings.lr_scheduler in FLAT:  # then it does not matter to any step where the run ends
        return flat
    return {**flat, "max_train_steps": settings.max_train_steps}


def start_processes(options: TrainOptions) -> Accelerator:
    """Accelerate says which process this is and on which device; number formats are the backbone's own affair."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration

    from dpt.distributed import COLLECTIVE_TIMEOUT
    from dpt.training.engine.logging import choose_trackers

    told = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if told not in ("1", str(options.optimisation.gradient_accumulation_steps)):
        fail(f"the launcher's --gradient_accumulation_steps {told} is not read: give it to the script")
    accelerator = Accelerator(
        mixed_precision="no",
        log_with=choose_trackers(options.output.report_to) or None,
        project_config=ProjectConfiguration(str(options.root), str(options.root / options.output.logging_dir)),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
    )
    if int(os.environ.get("WORLD_SIZE", "1")) > accelerator.num_processes:
        fail("the launcher has started processes that do not know of one another: on CPUs, use accelerate launch --cpu")
    supported = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in supported:
        fail(f"{accelerator.distributed_type} is not supported: one model per device is")
    return accelerator


def open_training_backbone(options: TrainOptions, accelerator: Accelerator) -> Backbone:
    from dpt.backbone import open_backbone
    from dpt.backbone.speedups import apply_speedups

    model = options.model
    # A launcher that was told nothing says "no", so its "no" asks for nothing.
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    asked = model.mixed_precision or (None if launched == "no" else launched)
    backbone = open_backbone(
        model_location(model.pretrained_model_name_or_path),
        revision=model.revision,
        device=accelerator.device,
        dtype="float32" if asked == "no" else asked,
        prediction_type=model.prediction_type,
    )
    if model.enable_xformers_memory_efficient_attention:
        use_xformers(backbone)
    ways = apply_speedups(backbone, compiled=model.compile, channels_last=model.channels_last, tf32=model.allow_tf32)
    if accelerator.is_main_process:
        for sentence in ways:
            print(sentence)
    return backbone


def use_xformers(backbone: Backbone) -> None:
    from importlib.util import find_spec

    if backbone.device.type == "cpu" or find_spec("xformers") is None:
        why = "runs on GPUs only" if backbone.device.type == "cpu" else "is not installed"
        warnings.warn(f"xformers {why}: using PyTorch's own attention", stacklevel=2)
        return
    backbone.network.enable_xformers_memory_efficient_attention()
