"""What watches a training run: its name, its trackers, the best result, an early stop, samples on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt.cli.train.options import LoopOptions, OutputOptions
from dpt.cli.train.setup import NOT_COMPARED
from dpt.errors import fail
from dpt.records import to_flat
from dpt.training.engine.observers import BestResult, Observers, RunObserver, TimeEstimate

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image

    from dpt.training.engine.loop import Loop


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
