"""Flags that were given and change nothing beside the others: each is said to, and why."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpt.cli.train_options import TrainOptions

ON_FILES_ONLY = ("dataset_name", "dataset_name_val", "combine_datasets_val", "val_fullset", "corrupt_budget")
ON_SCENES_ONLY = ("scenes", "validation_scenes")
OF_VALIDATION = (
    "val_batch_size", "validation_scenes", "val_fullset", "combine_datasets_val", "dataset_name_val", "no_detection",
)  # fmt: skip
OF_ASSIGNMENT = ("set_cost_class", "set_cost_bbox", "set_cost_giou")
OF_ALIGNMENT = ("contrastive_align_loss_coef", "contrastive_loss_hdim")


def warn_of_idle(options: TrainOptions) -> None:
    idle = options.idle()
    for name in given(options):
        if name in idle:
            warnings.warn(f"--{name} has no effect: {idle[name]}", stacklevel=2)


def given(options: TrainOptions) -> Iterator[str]:
    """Flags that ask for something else than they would by themselves."""
    for one in fields(options):
        group = getattr(options, one.name)
        untouched = type(group)()
        yield from (
            field.name for field in fields(group) if getattr(group, field.name) != getattr(untouched, field.name)
        )


def idle_in_training(options: TrainOptions) -> dict[str, str]:
    """By name why a flag of any training command changes nothing, of those that would not."""
    data, objective, o = options.data, options.objective, options.optimisation
    found: dict[str, str] = {}

    def say(why: str, *names: str) -> None:
        found.update(dict.fromkeys(names, why))

    if data.data_root is None:
        say("there is no --data_root, and scenes are rendered", *ON_FILES_ONLY)
        say("rendered scenes are square", "center_crop")
    else:
        say("what is in --data_root is read, and no scene rendered", *ON_SCENES_ONLY)
        if data.dataset_name_val is not None:
            say("--dataset_name_val says what to validate on", "combine_datasets_val")
    if options.output.validation_steps == 0:
        say("--validation_steps 0 is no validation", *OF_VALIDATION)
    if o.max_train_steps is not None:
        say("--max_train_steps says where the run ends", "num_train_epochs")
    if options.output.report_to == "none":
        say("--report_to none is no tracker", "logging_dir")
    if options.adapter.no_contrastive_align_loss:
        say("--no_contrastive_align_loss leaves that loss out", *OF_ALIGNMENT, "temperature_NCE")
    elif not objective.contrastive_align_loss_coef:
        say("--contrastive_align_loss_coef is 0", "temperature_NCE")
    if not objective.ce_loss_coef:
        say("--ce_loss_coef is 0", "eos_coef")
    if not objective.grounds(options.adapter.no_contrastive_align_loss):
        say("no loss of grounding weighs anything", *OF_ASSIGNMENT)
    return found
