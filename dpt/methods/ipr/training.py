"""Train a round: the denoising task on a folder of captioned, weighted images, with the shared training loop."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt.distributed import ONE_PROCESS, Processes
from dpt.errors import UserError
from dpt.methods.ipr.config import FineTuneConfig
from dpt.methods.ipr.folders import RECORD, StageFolder, write_json
from dpt.methods.ipr.sampling import ModelState

if TYPE_CHECKING:
    from dpt.backbone import Backbone
    from dpt.training.engine.settings import TrainSettings

TRAIN = "train"

NOT_RECORDED = frozenset({
    "full", "gradient_checkpointing", "checkpointing_steps", "logging_steps", "dataloader_num_workers",
    "train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_train_steps",
})  # fmt: skip
"""Options that change no number of a step, or are recorded as what they resolve to."""

NEWER = frozenset({"logit_mean", "logit_std", "lora_text_encoders"})
"""Options that earlier versions did not have: recorded only where they differ from their default."""


@dataclass(frozen=True)
class TrainedRound:
    """The model after a round; None if the round was stopped before its last step."""

    model: ModelState | None
    steps: int


def train(
    dataset: Path,
    model: ModelState,
    config: FineTuneConfig,
    out: Path,
    *,
    round_: int = 0,
    seed: int = 0,
    dtype: str | None = None,
    group: Processes = ONE_PROCESS,
) -> TrainedRound:
    """Train on the folder from the weights of `model`, and export what was trained to `out`.

    An interrupted run continues from its newest checkpoint.
    """
    from dpt.checkpoints.open import write_training
    from dpt.data.folder import FolderSource
    from dpt.data.images import Framing
    from dpt.data.stream import Stream
    from dpt.records import to_plain
    from dpt.training.engine.loop import Loop
    from dpt.training.engine.optim import require_eight_bit
    from dpt.training.engine.run_folder import RunConfig

    # The whole network is trained in float32, and a LoRA in a frozen network of any format.
    backbone = ModelState(model.base).open("float32" if config.full else dtype)
    if config.use_8bit_adam:
        require_eight_bit(backbone.device)
    framing = Framing.for_model(backbone, config.resolution, config.center_crop, config.random_flip)
    source = FolderSource(dataset, framing, seed)
    settings = settings_of(config, len(source), round_, seed, group.count)
    omitted = NOT_RECORDED | {name for name in NEWER if getattr(config, name) == getattr(FineTuneConfig, name)}
    values: dict[str, Any] = {
        **{name: value for name, value in to_plain(config).items() if name not in omitted},
        **model.identity(),
        "data": source.identity(),
        "steps": settings.max_train_steps,
        "seed": seed,
        "dtype": dtype or str(backbone.dtype),
        "device": backbone.device.type,
    }
    effective = settings.train_batch_size * settings.gradient_accumulation_steps * group.count
    finished = StageFolder(out, {**values, "global_batch": effective})
    if (out / RECORD).is_file() and group.from_main(finished.is_complete):
        return TrainedRound(_exported(model, config, out), settings.max_train_steps)
    task = _task(backbone, model, config, seed, dtype)
    processes = Processes(group.rank, group.count, backbone.device)
    loop = Loop(task, Stream(source, seed), settings, out, RunConfig(values, choose="--out"), processes)
    outcome = loop.run()
    if not outcome.finished:
        return TrainedRound(None, outcome.step)

    def export() -> None:
        for folder in task.folders:
            shutil.rmtree(out / folder, ignore_errors=True)
        with loop.update.averaged():
            task.export(out, model.base)
        write_training(out, outcome.step * effective, model.lora)
        write_json(out / RECORD, {"inputs": dict(finished.inputs), "stage": TRAIN, "steps": outcome.step})

    group.from_main(export)
    return TrainedRound(_exported(model, config, out), outcome.step)


def _exported(model: ModelState, config: FineTuneConfig, out: Path) -> ModelState:
    if config.full:
        from dpt.training.tasks.denoising import MODEL_FOLDER

        return ModelState(str(out / MODEL_FOLDER))
    return ModelState(model.base, out)


def settings_of(config: FineTuneConfig, pictures: int, round_: int, seed: int, processes: int) -> TrainSettings:
    from dpt.training.engine.settings import TrainSettings

    effective = config.train_batch_size * config.gradient_accumulation_steps * processes
    steps = config.max_train_steps
    if steps is None:
        steps = -(-config.epochs(round_) * pictures // max(1, effective))
    return TrainSettings(
        max_train_steps=steps,
        train_batch_size=config.train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        seed=seed,
        learning_rate=config.learning_rate,
        lr_scheduler=config.lr_scheduler,
        lr_warmup_steps=config.lr_warmup_steps,
        adam_weight_decay=config.adam_weight_decay,
        max_grad_norm=config.max_grad_norm,
        ema_decay=config.ema_decay,
        use_8bit_adam=config.use_8bit_adam,
        checkpointing_steps=config.checkpointing_steps,
        checkpoints_total_limit=1,
        validation_steps=0,
        logging_steps=config.logging_steps,
        dataloader_num_workers=config.dataloader_num_workers,
    )


def _task(backbone: Backbone, model: ModelState, config: FineTuneConfig, seed: int, dtype: str | None) -> Any:
    from dpt.checkpoints import open_checkpoint
    from dpt.lora import Lora, LoraConfig
    from dpt.training.tasks.denoising import DenoisingConfig, NoiseConfig, PlainLora

    denoising = DenoisingConfig(snr_gamma=config.snr_gamma)
    noise = NoiseConfig(noise_offset=config.noise_offset, logit_mean=config.logit_mean, logit_std=config.logit_std)
    checkpointing = config.gradient_checkpointing
    if config.full:
        from dpt.backbone.device import resolve_dtype
        from dpt.training.tasks.denoising import FullFineTuning

        compute = resolve_dtype(backbone.device, dtype)
        return FullFineTuning(backbone, denoising, noise, checkpointing, compute_dtype=compute)
    backbone.prepare_for_gradients()
    shape = LoraConfig(config.lora_rank, config.lora_alpha, config.lora_blocks, config.lora_text_encoders)
    lora = Lora(backbone, shape, seed)
    if model.lora is not None:
        stored = open_checkpoint(model.lora).lora
        assert stored is not None, "the identity of the model was read from it"
        if stored.record.config != lora.config:
            flags = stored.record.config.flags
            raise UserError(f"the LoRA {model.lora} has another shape: give {flags}")
        lora.load(stored.tensors, str(model.lora))
    return PlainLora(backbone, lora, None, denoising, noise, gradient_checkpointing=checkpointing)
