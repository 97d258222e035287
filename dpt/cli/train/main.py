"""A training command: from parsed options to a task, its data and the loop; and what is left when it is done."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from dpt.cli.common.console import parse_options, plain_warnings
from dpt.cli.train.options import NEVER_READ, AdapterOptions, ObjectiveOptions, TrainOptions, warn_unused_flags
from dpt.cli.train.setup import open_training_backbone, recorded, settings_for, start_processes
from dpt.errors import UserError, fail, run_command
from dpt.training.engine.interrupts import EXIT_STOPPED

if TYPE_CHECKING:
    from dpt.cli.train.hub import Hub
    from dpt.training.engine.loop import Loop, Outcome


CURVE = "curve.png"


def main(kind: type[TrainOptions], script: str, builder: str, arguments: Sequence[str] | None = None) -> int:
    """`builder` is MODULE:FUNCTION, imported only when all that can be known without has been checked: from the
    options, the model and what to validate on, the task, and what else decides what the run computes."""
    options = parse_options(kind, sys.argv[1:] if arguments is None else arguments, script)
    reached: list[Outcome] = []
    with plain_warnings():
        code = run_command(lambda: reached.append(run(options, builder)))
    return code or (0 if reached[0].finished else EXIT_STOPPED)


def run(options: TrainOptions, builder: str) -> Outcome:
    check(options)
    from dpt.cli.train.data import framing_of, open_cache, open_data
    from dpt.cli.train.hub import open_hub
    from dpt.data.stream import Stream
    from dpt.training.engine.logging import start_trackers
    from dpt.training.engine.loop import Loop
    from dpt.training.engine.optim import require_eight_bit

    accelerator = start_processes(options)
    if accelerator.is_main_process:
        warn_unused_flags(options)
    if options.optimisation.use_8bit_adam:
        require_eight_bit(accelerator.device)
    hub = open_hub(options.hub, options.root) if accelerator.is_main_process else None
    backbone = open_training_backbone(options, accelerator)
    framing = framing_of(options.data, backbone)
    cache = open_cache(options.data, framing, backbone)
    backbone.text_cache = cache.texts
    source, validation = open_data(options.data, framing, options.optimisation.seed, cache.latents)
    module, function = builder.split(":")
    task, begun_with = getattr(import_module(module), function)(options, backbone, validation)
    if accelerator.is_main_process:
        for sentence in cache.said:
            print(sentence)
    settings = settings_for(options, len(source), accelerator.num_processes)
    if settings.lr_warmup_steps >= settings.max_train_steps and accelerator.is_main_process:
        warnings.warn(
            f"the run ends at step {settings.max_train_steps}, before its learning rate has warmed up for "
            f"--lr_warmup_steps {settings.lr_warmup_steps}",
            stacklevel=2,
        )
    record = {**recorded(options, settings), "model_sha256": backbone.model_hash, "cache": cache.identity, **begun_with}
    stream = Stream(source, settings.seed, corrupt_budget=options.data.corrupt_budget)
    loop = Loop(task, stream, settings, options.root, record, accelerator)
    start_trackers(accelerator, record)
    try:
        outcome = loop.run(options.output.resume_from_checkpoint, options.output.reset_optimizer)
    except MemoryError as error:
        raise UserError(OUT_OF_MEMORY) from error
    except RuntimeError as error:
        reason = explained(error)
        if reason is None:
            raise
        raise UserError(reason) from error
    finally:
        accelerator.end_training()
    if accelerator.is_main_process:
        finish(options, loop, outcome, hub)
    return outcome


OUT_OF_MEMORY = (
    "the memory is not enough: lower --train_batch_size (and raise --gradient_accumulation_steps as much), give "
    "--gradient_checkpointing, or read a feature of fewer places"
)


def explained(error: RuntimeError) -> str | None:
    """PyTorch raises the second wherever the run is just then, also in the middle of a save."""
    if "out of memory" in str(error):
        return OUT_OF_MEMORY
    if "DataLoader worker" in str(error):
        return f"a process that prepares batches is gone ({str(error).splitlines()[0]}): {WORKER_LOST}"
    return None


WORKER_LOST = (
    "the same command goes on from the newest checkpoint; if memory was short, give a lower --dataloader_num_workers"
)


def finish(options: TrainOptions, loop: Loop, outcome: Outcome, hub: Hub | None) -> None:
    from dpt.training.engine.logging import plot_curve

    if not outcome.finished:
        print(f"stopped after step {outcome.step}: run the same command again to go on")
        return
    task: Any = loop.task
    for folder in task.folders:
        shutil.rmtree(options.root / folder, ignore_errors=True)
    with loop.update.averaged():
        folders = task.export(options.root, options.model.pretrained_model_name_or_path)
        options.after(loop.task)
    curve = options.root / CURVE
    plot_curve(options.root, curve)
    said = " and ".join(f"the {folder.name} is in {folder}" for folder in folders)
    print(f"trained to step {outcome.step}: {said}, the course of the training in {curve}")
    if hub is not None:
        print(f"uploaded to {hub.push(options.root, folders, curve)}")


def check(options: TrainOptions) -> None:
    """What can be found wrong without loading anything."""
    untouched = type(options.refused)()
    for one in fields(untouched):
        if getattr(options.refused, one.name) == getattr(untouched, one.name):
            continue
        if one.name in options.warned:
            warnings.warn(f"--{one.name} {options.warned[one.name]}", stacklevel=2)
        else:
            fail(f"--{one.name} {options.reasons.get(one.name, NEVER_READ)}")
    check_numbers(options.objective)
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
    options.check()
    settings_for(options, 1, 1)


def check_numbers(objective: ObjectiveOptions) -> None:
    """What weighs a loss or a cost, and what noise and similarity are scaled by."""
    for name in (one.name for one in fields(objective)):
        if ("_coef" in name or "set_cost" in name) and not 0 <= getattr(objective, name) < inf:
            fail(f"--{name} must be a number from 0 up, not {getattr(objective, name)}")
    if not 0 < objective.temperature_NCE < inf:
        fail(f"--temperature_NCE must be a positive number, not {objective.temperature_NCE}")
    if not isfinite(objective.noise_offset):
        fail(f"--noise_offset must be a number, not {objective.noise_offset}")


def check_text_encoder(adapter: AdapterOptions, objective: ObjectiveOptions) -> None:
    if adapter.text_encoder_type == "backbone":
        fail(
            "--no_freeze_text_encoder needs an encoder of its own, as --text_encoder_type roberta-base: the frozen "
            "model's also says to the UNet what to draw, in states that the UNet would no longer understand"
        )
    if adapter.no_contrastive_align_loss or not objective.contrastive_align_loss_coef:
        fail("--no_freeze_text_encoder trains by the contrastive align loss alone, and this run is without it")
