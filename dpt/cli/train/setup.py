"""Build what a run needs from its options: processes, model, loop settings, and the recorded configuration."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from dpt.cli.train.options import LoopOptions, ModelOptions, OptimisationOptions, TrainOptions
from dpt.embedded import model_location
from dpt.errors import fail
from dpt.training.engine.settings import FLAT, TrainSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dpt.backbone import Backbone
    from dpt.training.engine.run_folder import RunConfig


STEPS_ON_SCENES = 3000

EPOCHS_ON_FILES = 100


NOT_COMPARED = frozenset({
    # paths; the model, the data and the cache are recorded by their content
    "pretrained_model_name_or_path", "vae", "data_root", "cache", "revision", "output_dir", "run_name", "logging_dir",
    "report_to",
    # how the work is split; the effective batch is recorded
    "train_batch_size", "gradient_accumulation_steps", "val_batch_size", "dataloader_num_workers",
    "gradient_checkpointing",
    # how often something is saved, logged or validated, and the samples afterwards
    "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "reset_optimizer", "logging_steps",
    "validation_steps", "max_bad_steps", "corrupt_budget", "no_detection", "val_fullset", "validation_scenes",
    "combine_datasets_val", "dataset_name_val", "validation_prompts", "num_validation_images", "prompts_path_val",
    "clip", "validation_prompt_file", "validation_timesteps", "dataset_folder", "annotation_file",
    "regularization_folder", "regularization_annotation",
    # the model and the adapter are recorded by their hashes
    "allow_other_base",
    # what watches the run
    "config", "keep_best", "early_stopping_patience", "sample_steps",
    # recorded as the number of steps
    "num_train_epochs", "max_train_steps",
    # recorded as the number formats they resolve to
    "mixed_precision", "adapter_precision",
})  # fmt: skip
"""Flags that may differ between a run and its continuation, since they change none of its numbers."""

OPTIONAL = {
    "use_8bit_adam", "no_freeze_text_encoder", "ema_decay", "compile", "channels_last", "text_encoder_lr",
    "weight_decay_on", "lora_text_encoders", "val_fraction", "logit_mean", "logit_std", "quantize",
}  # fmt: skip
"""Flags recorded only where they are given: earlier versions did not have them."""

RESOLVED = frozenset({"data", "device", "dtype", "adapter_dtype"})
"""Settings resolved from flags, launcher and machine. Earlier versions did not record them."""

REMOVED = frozenset({"mend_loss_coef"})
"""Flags of earlier versions, still in the records of their runs."""


def settings_for(options: TrainOptions, examples: int, processes: int) -> TrainSettings:
    workers = options.data.loading.dataloader_num_workers
    if options.data.data_root is None and options.optimisation.num_train_epochs is None:
        return loop_settings(options, examples, processes, workers, default_steps=STEPS_ON_SCENES)
    return loop_settings(options, examples, processes, workers, default_epochs=EPOCHS_ON_FILES)


def loop_settings(
    options: LoopOptions,
    examples: int,
    processes: int,
    workers: int = 0,
    *,
    default_steps: int | None = None,
    default_epochs: int = 1,
) -> TrainSettings:
    """The loop's settings; the length is that of the flags, or else the default one."""
    flat = {**asdict(options.optimisation), **asdict(options.output)}
    names = {field.name for field in fields(TrainSettings)}
    o = options.optimisation
    effective = o.train_batch_size * o.gradient_accumulation_steps * processes
    settings = {name: value for name, value in flat.items() if name in names}
    settings["max_train_steps"] = _steps(o, examples, effective, default_steps, default_epochs)
    if o.scale_lr:
        settings["learning_rate"] = o.learning_rate * effective
    return TrainSettings(**settings, dataloader_num_workers=workers)


def _steps(
    o: OptimisationOptions, examples: int, effective: int, default_steps: int | None, default_epochs: int
) -> int:
    if o.max_train_steps is not None:
        return o.max_train_steps
    if default_steps is not None:
        return default_steps
    epochs = default_epochs if o.num_train_epochs is None else o.num_train_epochs
    if epochs < 1:
        fail(f"--num_train_epochs must be at least 1, not {epochs}")
    return -(-epochs * examples // max(1, effective))


def run_config(options: TrainOptions, settings: TrainSettings, **resolved: Any) -> RunConfig:
    """The flags that decide the run's numbers, with what they resolved to."""
    groups = [getattr(options, field.name) for field in fields(options) if field.name != "hub"]
    return config_of_groups(groups, settings, **resolved)


def config_of_groups(groups: Sequence[Any], settings: TrainSettings, **resolved: Any) -> RunConfig:
    """The same for any groups of flags; each is a dataclass whose fields have defaults."""
    from dpt.records import to_flat
    from dpt.training.engine.run_folder import RunConfig

    flags = {name: value for group in groups for name, value in to_flat(group).items() if name not in NOT_COMPARED}
    defaults = {name: value for group in groups for name, value in to_flat(type(group)()).items()}
    flags = {name: value for name, value in flags.items() if name not in OPTIONAL or value != defaults[name]}
    # the record holds the hash of the cache instead of its path
    not_compared = (NOT_COMPARED | REMOVED) - resolved.keys()
    if settings.lr_scheduler not in FLAT:  # a constant rate does not depend on the length of the run
        flags["max_train_steps"] = settings.max_train_steps
        not_compared -= {"max_train_steps"}
    return RunConfig({**flags, **resolved}, not_compared, RESOLVED)


def resolved_formats(backbone: Backbone, task: Any) -> dict[str, str]:
    adapter = getattr(task, "adapter", None)
    formats = {"device": backbone.device.type, "dtype": str(backbone.dtype)}
    return formats if adapter is None else {**formats, "adapter_dtype": str(adapter.matmul_dtype)}


def start_processes(options: LoopOptions) -> Accelerator:
    """Accelerate knows which process this is and its device; the backbone chooses number formats."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration

    from dpt.distributed import COLLECTIVE_TIMEOUT
    from dpt.training.engine.logging import choose_trackers

    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation not in ("1", str(options.optimisation.gradient_accumulation_steps)):
        fail(f"the launcher's --gradient_accumulation_steps {accumulation} is not read: give it to the script")
    accelerator = Accelerator(
        mixed_precision="no",
        log_with=choose_trackers(options.output.report_to) or None,
        project_config=ProjectConfiguration(str(options.root), str(options.root / options.output.logging_dir)),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
    )
    if int(os.environ.get("WORLD_SIZE", "1")) > accelerator.num_processes:
        fail("the launcher started processes that are not in one group: on CPUs, use accelerate launch --cpu")
    supported = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in supported:
        fail(f"{accelerator.distributed_type} is not supported, only one whole model per device")
    return accelerator


def open_training_backbone(model: ModelOptions, accelerator: Accelerator) -> Backbone:
    from dpt.backbone import open_backbone
    from dpt.backbone.speedups import apply_speedups

    # accelerate launch sets "no" by default, so "no" is no choice of the user.
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    precision = model.mixed_precision or (None if launched == "no" else launched)
    backbone = open_backbone(
        model_location(model.pretrained_model_name_or_path),
        revision=model.revision,
        device=accelerator.device,
        dtype="float32" if precision == "no" else precision,
        prediction_type=model.prediction_type,
        vae=model.vae,
        quantize=model.quantize,
    )
    if model.enable_xformers_memory_efficient_attention:
        use_xformers(backbone)
    sentences = apply_speedups(
        backbone, compiled=model.compile, channels_last=model.channels_last, tf32=model.allow_tf32
    )
    if accelerator.is_main_process:
        for sentence in sentences:
            print(sentence)
    return backbone


def with_feature(model: ModelOptions, backbone: Backbone) -> ModelOptions:
    """The options with the model's default feature, unless one was chosen."""
    return replace(model, unet_feature=model.unet_feature or backbone.default_feature)


def use_xformers(backbone: Backbone) -> None:
    from importlib.util import find_spec

    if backbone.device.type == "cpu" or find_spec("xformers") is None:
        reason = "runs on GPUs only" if backbone.device.type == "cpu" else "is not installed"
        warnings.warn(f"xformers {reason}: using PyTorch's own attention", stacklevel=2)
        return
    backbone.network.enable_xformers_memory_efficient_attention()
