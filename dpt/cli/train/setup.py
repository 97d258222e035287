"""Around a training run: processes, model and loop settings from the options, its record, and what watches it."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt.cli.train.options import LoopOptions, ModelOptions, OptimisationOptions, OutputOptions, TrainOptions
from dpt.embedded import model_location
from dpt.errors import fail
from dpt.records import to_flat
from dpt.training.engine.observers import BestResult, Observers, RunObserver, TimeEstimate
from dpt.training.engine.settings import FLAT, TrainSettings

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image

    from dpt.backbone import Backbone
    from dpt.training.engine.loop import Loop
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
    from dpt.backbone.device import apply_speedups

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


def check_output(output: OutputOptions) -> None:
    patience = output.early_stopping_patience
    if patience is not None and patience < 1:
        fail(f"--early_stopping_patience must be at least 1, not {patience}")
    if patience is not None and output.keep_best is None:
        fail("--early_stopping_patience needs --keep_best METRIC, which says what has to improve")
    if output.keep_best is not None and output.validation_steps == 0:
        fail("--keep_best needs validations, and --validation_steps 0 turns them off")


def with_run_name(output: OutputOptions, task: str, options: Any) -> OutputOptions:
    """The output options with a name for a run that has neither a name nor a folder: a function of its flags.

    A run that an earlier version left in the bare default folder is continued there.
    """
    bare = OutputOptions()
    if output.run_name or output.output_dir != bare.output_dir or (output.output_dir / "config.json").exists():
        return output
    compared = {name: value for name, value in to_flat(options).items() if name not in NOT_COMPARED}
    digest = hashlib.sha256(json.dumps(compared, sort_keys=True, default=str).encode()).hexdigest()
    return replace(output, run_name=f"{task}-{digest[:8]}")


def tracking_line(options: LoopOptions, accelerator: Accelerator) -> str:
    """Where the losses go, and how to see them."""
    line = f"run folder: {options.root}; losses in log.jsonl"
    if not options.root.name:
        line = f"run folder: {options.root.absolute()}; losses in log.jsonl"
    names = [tracker.name for tracker in accelerator.trackers]
    if "tensorboard" in names:
        line += f" and TensorBoard (tensorboard --logdir {options.root / options.output.logging_dir})"
    if "wandb" in names:
        line += " and Weights & Biases"
    if not names and options.output.report_to is None:
        line += "; for TensorBoard: pip install 'dpt[track]'"
    return line


def observers_for(
    options: LoopOptions, loop: Loop[Any], further: Sequence[RunObserver] = ()
) -> tuple[RunObserver, BestResult | None]:
    """The observers of a run, and among them the one that keeps the best result."""

    def export(folder: Path) -> None:
        with loop.update.averaged():
            loop.task.export(folder, options.base_model)

    from dpt.training.engine.logging import peak_memory

    output = options.output
    best = None
    if output.keep_best is not None:
        patience, losses = output.early_stopping_patience, loop.task.weights
        best = BestResult(options.root, output.keep_best, export, patience, losses)
    watching = [
        TimeEstimate(loop.settings.max_train_steps, lambda: peak_memory(loop.device)),
        *further,
        *([] if best is None else [best]),
    ]
    return Observers(watching), best


class AfterValidation(RunObserver):
    """Calls a function with the step that was validated."""

    def __init__(self, function: Callable[[int], None]) -> None:
        self.function = function

    def after_validation(self, step: int, metrics: Any) -> None:
        self.function(step)


SAMPLES_FOLDER = "samples"

SAMPLE_SEED = 0


class SampleSheets(RunObserver):
    """Every so many steps, the same prompts from the same noise: the base model beside the tuned one."""

    def __init__(self, every: int, prompts: Sequence[str], per_prompt: int, root: Path, task: Any) -> None:
        self.every, self.prompts, self.per_prompt, self.root, self.task = every, prompts, per_prompt, root, task
        self.base: list[Image.Image] = []
        self.averaged: Callable[[], Any] | None = None
        """Switches to the averaged weights, if there are any."""
        self.accelerator: Accelerator | None = None

    def after_step(self, step: int) -> None:
        if step % self.every:
            return
        from dpt.evaluation.contact_sheet import contact_sheet

        assert self.averaged is not None
        self.task.trained.eval()
        with self.averaged():
            if not self.base:
                with self.task.lora.disabled():
                    self.base = self._draw()
            tuned = self._draw()
        self.task.trained.train()
        pairs = [image for pair in zip(self.base, tuned, strict=True) for image in pair]
        titles = [f"{prompt}: {which}" for prompt in self._rows() for which in ("base", f"step {step}")]
        sheet = contact_sheet(pairs, titles, columns=2 * min(self.per_prompt, 2))
        file = self.root / SAMPLES_FOLDER / f"step-{step:06d}.png"
        file.parent.mkdir(exist_ok=True)
        sheet.save(file)
        self._track(sheet, step)

    def _rows(self) -> list[str]:
        return [prompt for prompt in self.prompts for _ in range(self.per_prompt)]

    def _draw(self) -> list[Image.Image]:
        from dpt.data.images import to_pil
        from dpt.sampling.draw import Request, SamplingSettings, draw

        defaults = self.task.backbone.generation_defaults
        settings = SamplingSettings(guidance_scale=defaults.guidance_scale)
        requests = [
            Request(prompt, SAMPLE_SEED, k, defaults.negative_prompt)
            for prompt in self.prompts
            for k in range(self.per_prompt)
        ]
        return [to_pil(image) for image in draw(self.task.backbone, requests, settings)]

    def _track(self, sheet: Image.Image, step: int) -> None:
        import numpy as np

        for tracker in [] if self.accelerator is None else self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_image(SAMPLES_FOLDER, np.asarray(sheet), step, dataformats="HWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({SAMPLES_FOLDER: [sheet]}, step=step)
