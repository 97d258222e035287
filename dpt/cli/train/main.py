"""A training command: build the task and its data from the options, run the loop, export the results."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib import import_module
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dpt.cli.common.config_file import RESOLVED, options_of_file, take_config_flag, to_toml
from dpt.cli.common.console import (
    NO_PUBLISHED_FLAGS,
    PublishedFlags,
    parse_options,
    plain_warnings,
    warn_of_unknown_captions,
)
from dpt.cli.train.options import AdapterOptions, LoopOptions, ObjectiveOptions, TrainOptions, warn_unused_flags
from dpt.cli.train.setup import (
    SampleSheets,
    check_output,
    observers_for,
    open_training_backbone,
    resolved_formats,
    run_config,
    settings_for,
    start_processes,
    tracking_line,
    with_feature,
    with_run_name,
)
from dpt.errors import UserError, fail, run_command
from dpt.training.engine.observers import EXIT_STOPPED
from dpt.untrusted import read_json_object

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dpt.cli.train.hub import Hub
    from dpt.training.engine.loop import Loop, Outcome
    from dpt.training.engine.observers import RunObserver
    from dpt.training.engine.run_folder import RunConfig
    from dpt.training.engine.settings import TrainSettings
    from dpt.training.engine.task import B, BatchStream, Task


CURVE = "curve.png"

Options = TypeVar("Options")


def main(kind: type[TrainOptions], script: str, builder: str, arguments: Sequence[str] | None = None) -> int:
    """Parse the flags, train, and return the exit code.

    `builder` is MODULE:FUNCTION, imported only after the flags are checked. It takes options, backbone and validation
    streams, and returns the task and the hashes of its initial weights.
    """
    return run_to_exit_code(kind, script, lambda options: run(options, builder), arguments, kind.published)


def run_to_exit_code(
    kind: type[Options],
    script: str,
    train: Callable[[Options], Outcome],
    arguments: Sequence[str] | None = None,
    published: PublishedFlags = NO_PUBLISHED_FLAGS,
    default: Options | None = None,
) -> int:
    """Parse the flags and train; 0 if the last step was reached, 75 if the run was stopped and saved."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    outcomes: list[Outcome] = []

    def parse_and_train() -> None:
        flags, file = take_config_flag(words)
        chosen = default if file is None else options_of_file(file, kind, published, default)
        outcomes.append(train(parse_options(kind, flags, script, published, chosen)))

    with plain_warnings():
        code = run_command(parse_and_train)
    return code or (0 if outcomes[0].finished else EXIT_STOPPED)


def run(options: TrainOptions, builder: str) -> Outcome:
    check(options)
    options = replace(options, output=with_run_name(options.output, options.task_name, options))
    from dpt.backbone.identity import hash_as_recorded
    from dpt.cli.train.data import data_identity, framing_of, missing_parts, open_cache, open_data, require_parts
    from dpt.cli.train.hub import open_hub
    from dpt.data.stream import Stream
    from dpt.training.engine.optim import require_eight_bit

    accelerator = start_processes(options)
    if accelerator.is_main_process:
        warn_unused_flags(options)
    if options.optimisation.use_8bit_adam:
        require_eight_bit(accelerator.device)
    hub = open_hub(options.hub, options.root) if accelerator.is_main_process else None
    backbone = open_training_backbone(options.model, accelerator)
    options = replace(options, model=with_feature(options.model, backbone))
    framing = framing_of(options.data.framing, backbone)
    cache = open_cache(options.data, framing, backbone)
    if options.trains_text_encoders:
        cache = replace(cache, texts=None)  # its states were computed without the LoRA
    source, validation = open_data(options.data, framing, options.optimisation.seed, cache)
    module, function = builder.split(":")
    task, initial_weights = getattr(import_module(module), function)(options, backbone, validation)
    require_parts(source, task.parts)
    if accelerator.is_main_process:
        for sentence in (*cache.messages, *missing_parts(source, task.parts)):
            print(sentence)
        warn_of_unknown_captions(options.base_model, source.captions())
    settings = settings_for(options, len(source), accelerator.num_processes)
    if settings.lr_warmup_steps >= settings.max_train_steps and accelerator.is_main_process:
        warnings.warn(
            f"the run ends at step {settings.max_train_steps}, before the warm-up of --lr_warmup_steps "
            f"{settings.lr_warmup_steps} is over",
            stacklevel=2,
        )
    config = run_config(
        options,
        settings,
        model_sha256=hash_as_recorded(recorded_model(options.root), backbone.folder),
        cache=cache.identity,
        data=data_identity(options.data, source),
        **resolved_formats(backbone, task),
        **initial_weights,
    )
    stream = Stream(source, settings.seed, corrupt_budget=options.data.loading.corrupt_budget, text_cache=cache.texts)
    outcome = train_task(options, accelerator, task, stream, settings, config, hub, options.observers(task))
    if outcome.finished and accelerator.is_main_process and options.next_command:
        print(f"next: {options.next_command}")
    return outcome


def train_task(
    options: LoopOptions,
    accelerator: Accelerator,
    task: Task[B],
    stream: BatchStream[B],
    settings: TrainSettings,
    config: RunConfig,
    hub: Hub | None = None,
    observers: Sequence[RunObserver] = (),
) -> Outcome:
    """Run the loop and export the results. The observers watch it beside those that the flags ask for."""
    from dpt.distributed import Processes
    from dpt.training.engine.logging import start_trackers
    from dpt.training.engine.loop import Loop

    processes = Processes(accelerator.process_index, accelerator.num_processes, accelerator.device)
    config = replace(config, files={RESOLVED: to_toml(options)})
    loop = Loop(task, stream, settings, options.root, config, processes, accelerator.log)
    loop.observer, best = observers_for(options, loop, observers)
    for observer in observers:
        if isinstance(observer, SampleSheets):
            observer.averaged, observer.accelerator = loop.update.averaged, accelerator
    start_trackers(accelerator, config.values)
    if accelerator.is_main_process:
        print(tracking_line(options, accelerator))
    try:
        outcome = loop.run(options.output.resume_from_checkpoint, options.output.reset_optimizer)
    except MemoryError as error:
        raise UserError(OUT_OF_MEMORY) from error
    except RuntimeError as error:
        reason = user_message(error)
        if reason is None:
            raise
        raise UserError(reason) from error
    finally:
        accelerator.end_training()
    if accelerator.is_main_process:
        finish(options, loop, outcome, hub)
        if best is not None and (sentence := best.describe()):
            print(sentence)
    return outcome


def recorded_model(root: Path) -> str:
    """The model hash in the config of the run in this folder; "" if there is none."""
    from dpt.training.engine.run_folder import CONFIG

    try:
        return str(read_json_object(root / CONFIG).get("model_sha256", ""))
    except UserError:
        return ""


OUT_OF_MEMORY = (
    "out of memory: lower --train_batch_size (and raise --gradient_accumulation_steps as much), give "
    "--gradient_checkpointing, or choose a smaller --unet_feature"
)

WORKER_LOST = (
    "run the same command again to continue from the newest checkpoint; if memory was short, lower "
    "--dataloader_num_workers"
)


def user_message(error: RuntimeError) -> str | None:
    """A message for PyTorch errors that the user can fix; None for others."""
    if "out of memory" in str(error):
        return OUT_OF_MEMORY
    if "DataLoader worker" in str(error):
        return f"a data loader worker died ({str(error).splitlines()[0]}): {WORKER_LOST}"
    return None


def finish(options: LoopOptions, loop: Loop[Any], outcome: Outcome, hub: Hub | None) -> None:
    """After the last step: export, samples, the plot, the upload."""
    if not outcome.finished:
        print(f"stopped after step {outcome.step}: run the same command again to continue")
        return
    curve = options.root / CURVE
    with not_lost(options.root):
        folders = export(options, loop, curve)
    names = " and ".join(f"the {folder.name} is in {folder}" for folder in folders)
    print(f"trained to step {outcome.step}: {names}, training curve in {curve}")
    if hub is not None:
        print(f"uploaded to {hub.push(options.root, folders, curve)}")


def export(options: LoopOptions, loop: Loop[Any], curve: Path) -> list[Path]:
    from dpt.checkpoints.open import write_training
    from dpt.training.engine.logging import plot_curve

    for folder in loop.task.folders:
        shutil.rmtree(options.root / folder, ignore_errors=True)
    with loop.update.averaged():
        folders = loop.task.export(options.root, options.base_model)
        options.after(loop.task)
    write_training(options.root, loop.step * loop.plan.global_batch, options.starts_from)
    plot_curve(options.root, curve)
    return folders


@contextmanager
def not_lost(root: Path) -> Iterator[None]:
    """Report write errors after the last step as user errors that name the complete checkpoint."""
    from safetensors import SafetensorError

    saved = "the last checkpoint is complete, and the same command continues from it"
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the results in {root} cannot be written: {reason}; {saved}") from None
    except UserError as error:
        raise UserError(f"{error}; {saved}") from None


def check(options: TrainOptions) -> None:
    """Check all flags before anything is loaded."""
    check_numbers(options.objective)
    for name in ("val_batch_size", "validation_scenes"):
        if getattr(options.data, name) < 1:
            fail(f"--{name} must be at least 1, not {getattr(options.data, name)}")
    options.data.loading.check()
    for name in ("hub_token", "hub_model_id"):
        if getattr(options.hub, name) is not None and not options.hub.push_to_hub:
            fail(f"--{name} has no effect without --push_to_hub")
    rate = options.optimisation.text_encoder_lr
    if rate is not None and not 0 < rate < inf:
        fail(f"--text_encoder_lr must be positive, not {rate}")
    if options.adapter.no_freeze_text_encoder:
        check_text_encoder(options.adapter, options.objective)
    check_output(options.output)
    if not 0 <= options.data.val_fraction < 1:
        fail(f"--val_fraction must be at least 0 and below 1, not {options.data.val_fraction}")
    options.check()
    settings_for(options, 1, 1)


def check_numbers(objective: ObjectiveOptions) -> None:
    """Loss weights, assignment costs, noise offset and temperature."""
    for name in (field.name for field in fields(objective)):
        if ("_coef" in name or "set_cost" in name) and not 0 <= getattr(objective, name) < inf:
            fail(f"--{name} must be a number of at least 0, not {getattr(objective, name)}")
    if not 0 < objective.temperature_NCE < inf:
        fail(f"--temperature_NCE must be a positive number, not {objective.temperature_NCE}")
    if not isfinite(objective.noise_offset):
        fail(f"--noise_offset must be a number, not {objective.noise_offset}")
    if not isfinite(objective.logit_mean):
        fail(f"--logit_mean must be a number, not {objective.logit_mean}")
    if not 0 < objective.logit_std < inf:
        fail(f"--logit_std must be a positive number, not {objective.logit_std}")


def check_text_encoder(adapter: AdapterOptions, objective: ObjectiveOptions) -> None:
    if adapter.text_encoder_type == "backbone":
        fail(
            "--no_freeze_text_encoder needs an encoder of its own, as --text_encoder_type roberta-base: the frozen "
            "model's own also conditions the UNet, which was not trained on changed embeddings"
        )
    if adapter.no_contrastive_align_loss or not objective.contrastive_align_loss_coef:
        fail("--no_freeze_text_encoder trains by the contrastive align loss alone, which this run leaves out")
