"""The recipe of the pocket model, and a stage of it as a task of the training engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dpt.backbone.rng import SampleRNG
from dpt.data.example import ALL_PARTS, ExampleParts
from dpt.distributed import Processes
from dpt.errors import UserError
from dpt.records import read_record, to_plain
from dpt.training.engine.loop import Loop
from dpt.training.engine.optim import CheckpointTensors, Update
from dpt.training.engine.run_folder import RunConfig
from dpt.training.engine.settings import TrainSettings
from dpt.training.engine.task import OnBatch, ParameterGroup, Tally, matrices_decay

RECIPE_FILE = Path(__file__).with_name("recipe.json")


@dataclass(frozen=True)
class Schedule:
    """One stage's optimisation."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 200
    decay: int = 500
    """The rate falls to zero over so many last steps."""
    averaging: float = 0.998
    clip: float = 1.0
    weight_decay: float = 0.01
    beta2: float = 0.99
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class TextRecipe:
    width: int = 128
    layers: int = 4
    heads: int = 4
    length: int = 32
    patch: int = 8
    image_layers: int = 4
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=1600, batch=64, learning_rate=1e-3, decay=480))


@dataclass(frozen=True)
class VaeRecipe:
    channels: tuple[int, ...] = (24, 48, 64)
    latent_channels: int = 4
    kl: float = 1e-4
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=2000, batch=12, learning_rate=2e-3, decay=800))


@dataclass(frozen=True)
class Phase:
    """A phase of the UNet's training."""

    until: int
    """The step at which it ends; the last phase lasts as long as the training does."""
    noise: float
    """Strength of the caption noise."""
    omission: float = 0.3
    """The chance, at full noise, that one kind of object goes unmentioned."""
    sorts: tuple[tuple[str, float], ...] = ()
    """Weights of the sorts of scene; empty: the world's own."""
    gap: float = 0.0
    """Pixels that must be free between any two objects; scenes that are tighter are passed over."""


@dataclass(frozen=True)
class UNetRecipe:
    channels: tuple[int, ...] = (48, 96, 160)
    layers_per_block: int = 1
    attention: tuple[bool, ...] = (False, True, True)
    """Per level, finest first: does it have self- and cross-attention?"""
    head_width: int = 32
    beta_start: float = 0.00085
    beta_end: float = 0.018
    latents: int = 40_000
    """Scenes encoded once and drawn from again, each time with a fresh caption."""
    phases: tuple[Phase, ...] = (
        Phase(until=3000, noise=0.0, sorts=(("single", 0.7), ("pair", 0.3))),
        Phase(until=5107, noise=0.6),
        Phase(
            until=17_000,
            noise=0.6,
            omission=0.08,
            sorts=(("single", 0.3), ("pair", 0.35), ("group", 0.25), ("mixed", 0.1)),
        ),
        Phase(
            until=0,
            noise=0.5,
            omission=0.08,
            sorts=(("single", 0.2), ("pair", 0.35), ("group", 0.3), ("mixed", 0.15)),
        ),
    )
    caption_dropout: float = 0.1
    schedule: Schedule = field(
        default_factory=lambda: Schedule(steps=20_500, batch=24, learning_rate=1.2e-3, decay=6000, averaging=0.999)
    )


@dataclass(frozen=True)
class Recipe:
    seed: int = 2024
    world: str = "pocket"
    text: TextRecipe = field(default_factory=TextRecipe)
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    unet: UNetRecipe = field(default_factory=UNetRecipe)


def read_recipe(file: Path = RECIPE_FILE) -> Recipe:
    return read_record(Recipe, file)


CHECKPOINTING_STEPS = 250

LOGGING_STEPS = 50


class Stage(Protocol):
    name: str
    model: nn.Module

    def losses(self, step: int, rows: range) -> dict[str, Tensor]:
        """Named scalars over those rows of the step's batch; the one called "loss" is minimised."""


def train_stage(
    stage: Stage,
    schedule: Schedule,
    recipe: Any,
    folder: Path,
    until: float | None = None,
    processes: Processes | None = None,
) -> bool:
    """Train a stage to its last step, or until the clock time `until`; returns whether it is complete.

    A run in `folder` is resumed only with the same `recipe`, apart from its number of steps. Afterwards the
    stage's model holds the averaged weights.
    """
    processes = processes or Processes()
    if schedule.batch % processes.count:
        raise UserError(f"a batch of {schedule.batch} cannot be shared evenly by {processes.count} processes")
    plain = to_plain(recipe)
    plain["schedule"] = {name: value for name, value in plain["schedule"].items() if name != "steps"}
    config = RunConfig(plain, choose="--work folder")
    settings = _settings(schedule, processes.count)
    task = StageTask(stage, schedule.batch)
    update = MasterWeightUpdate(stage.model, getattr(torch, schedule.dtype), settings)
    outcome = Loop(task, Positions(), settings, folder, config, processes, update=update).run(until=until)
    update.finish()
    return outcome.finished


def _settings(schedule: Schedule, processes: int) -> TrainSettings:
    return TrainSettings(
        max_train_steps=schedule.steps,
        train_batch_size=schedule.batch // processes,
        learning_rate=schedule.learning_rate,
        lr_warmup_steps=schedule.warmup,
        lr_decay_steps=schedule.decay,
        adam_beta2=schedule.beta2,
        adam_weight_decay=schedule.weight_decay,
        ema_decay=schedule.averaging,
        max_grad_norm=schedule.clip,
        checkpointing_steps=CHECKPOINTING_STEPS,
        checkpoints_total_limit=2,
        validation_steps=0,
        logging_steps=LOGGING_STEPS,
    )


@dataclass(frozen=True)
class PositionBatch:
    """Positions only: a stage renders its own examples."""

    positions: Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PositionBatch:
        return self


class Positions:
    def only(self, parts: ExampleParts) -> Positions:
        return self

    def batches(
        self, positions: Iterable[Sequence[int]], workers: int = 0, pin_memory: bool = False
    ) -> Iterator[PositionBatch]:
        return map(PositionBatch, positions)

    def example_id(self, position: int) -> str:
        return str(position)


class StageTask:
    weights: Mapping[str, float] = {"loss": 1.0}
    scales_loss = False
    num_validation_examples = 0
    folders = ()
    parts = ALL_PARTS

    def __init__(self, stage: Stage, batch_size: int) -> None:
        self.stage, self.batch_size, self.trained = stage, batch_size, stage.model

    def parameter_groups(self) -> list[ParameterGroup]:
        return matrices_decay(self.trained)

    def count(self, batch: PositionBatch) -> int:
        return 0

    def losses(self, batch: PositionBatch, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
        step, first = divmod(batch.positions[0], self.batch_size)
        return self.stage.losses(step, range(first, first + len(batch)))

    def validate(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        return {}

    def memory(self, examples: int) -> Mapping[str, int]:
        return {}

    def export(self, root: Path, base: str = "") -> list[Path]:
        """The stages are written together: see `dpt.pocket.build`."""
        return []


class MasterWeightUpdate(Update):
    """AdamW on float32 copies of a model that computes in another dtype.

    On a CPU with bfloat16 instructions this halves the time of a step and costs no precision in the update.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, settings: TrainSettings) -> None:
        self.model = model
        groups = [ParameterGroup(_masters(group), group.decays) for group in matrices_decay(model)]
        self.working = {name: p for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(groups, settings)
        for p in self.working.values():
            p.data = p.data.to(dtype)

    def average_gradients(self, processes: Processes) -> None:
        for name, p in self.working.items():
            self.named[name].grad = None if p.grad is None else p.grad.float()
            p.grad = None
        super().average_gradients(processes)

    def apply(self, step: int, loss_is_bad: Tensor) -> tuple[Tensor, Tensor]:
        norm, status = super().apply(step, loss_is_bad)
        self._copy_to_model()
        return norm, status

    @contextmanager
    def averaged(self) -> Iterator[None]:
        with super().averaged():
            self._copy_to_model()
            yield
        self._copy_to_model()

    def restore(self, groups: CheckpointTensors, where: str, reset_moments: bool = False) -> None:
        super().restore(groups, where, reset_moments)
        self._copy_to_model()

    def finish(self) -> None:
        """Leave the average in the model, in float32, for use."""
        self.model.float().eval()
        with super().averaged():
            self._copy_to_model()

    @torch.no_grad()
    def _copy_to_model(self) -> None:
        for name, p in self.working.items():
            p.copy_(self.named[name])


def _masters(group: ParameterGroup) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(p.detach().clone().float()) for name, p in group.named.items()}
