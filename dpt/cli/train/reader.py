"""`dpt detect train-reader`: train the reader, the held-out judge of pocket pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dpt.cli.train.options import LoadingOptions, LoopOptions, OptimisationOptions, OutputOptions
from dpt.errors import fail

if TYPE_CHECKING:
    from dpt.training.engine.loop import Outcome

RECIPE = OptimisationOptions(
    max_train_steps=1200,
    train_batch_size=64,
    learning_rate=2e-3,
    lr_scheduler="cosine",
    lr_warmup_steps=100,
    weight_decay_on="matrices",
    seed=71_000_003,
)
"""What trained ckpt/reader."""


@dataclass(frozen=True)
class ReaderOptions:
    """The network, and the pictures that it is validated on."""

    width: int = 64
    """Channels."""
    blocks: int = 5
    """Residual blocks of two convolutions."""
    vae: Annotated[str, tyro.conf.arg(metavar="FOLDER|none")] = "ckpt/pocket-mmdit"
    """Every sixteenth picture is encoded and decoded by the VAE of this model, with some noise on its latents."""
    validation_pictures: int = 512
    val_batch_size: int = 64
    mixed_precision: Literal["no", "bf16"] = "bf16"
    """Number format of matrix products. Weights are always float32."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class TrainReaderOptions(LoopOptions):
    """Train the reader, a small detector of pocket pictures, on pictures drawn on the fly. The same command resumes.

    Exit code 75 means that the run was stopped by a signal and saved.
    """

    optimisation: OptimisationOptions = RECIPE
    reader: ReaderOptions = field(default_factory=ReaderOptions)
    loading: LoadingOptions = field(default_factory=LoadingOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    from dpt.cli.train.main import run_to_exit_code

    return run_to_exit_code(TrainReaderOptions, "dpt detect train-reader", train, arguments)


def train(options: TrainReaderOptions) -> Outcome:
    from dpt.cli.train.setup import check_output, with_run_name

    reader = options.reader
    for name in ("validation_pictures", "val_batch_size"):
        if getattr(reader, name) < 1:
            fail(f"--{name} must be at least 1, not {getattr(reader, name)}")
    options.loading.check()
    check_output(options.output)
    options = replace(options, output=with_run_name(options.output, "reader", options))
    import torch

    from dpt.backbone.device import resolve_matmul_dtype
    from dpt.cli.train.main import train_task
    from dpt.cli.train.setup import config_of_groups, loop_settings, start_processes
    from dpt.detect.accuracy import open_vae
    from dpt.detect.reader.detector import ReaderConfig, ReaderNetwork
    from dpt.detect.reader.practice import PracticeStream
    from dpt.embedded import model_location
    from dpt.training.tasks.reader import ReaderTask
    from dpt.weights import content_hash

    accelerator = start_processes(options)
    seed = options.optimisation.seed
    config = ReaderConfig(width=reader.width, blocks=reader.blocks)
    vae = None
    if reader.vae != "none":
        vae = open_vae(Path(model_location(reader.vae))).requires_grad_(False).to(accelerator.device)
        vae = vae.to(memory_format=torch.channels_last)
    torch.manual_seed(seed)
    network = ReaderNetwork(config).to(accelerator.device)
    precision = "bf16" if reader.mixed_precision == "bf16" else "fp32"
    task = ReaderTask(
        network,
        vae,
        PracticeStream(config, seed, "validation"),
        reader.validation_pictures,
        reader.val_batch_size,
        resolve_matmul_dtype(accelerator.device, precision),
    )
    stream = PracticeStream(config, seed)
    settings = loop_settings(
        options, len(stream), accelerator.num_processes, options.loading.dataloader_num_workers, default_steps=1200
    )
    record = config_of_groups(
        [options.optimisation, options.output],
        settings,
        task="reader",
        width=reader.width,
        blocks=reader.blocks,
        vae_sha256="none" if vae is None else content_hash(vae.state_dict()),
        device=accelerator.device.type,
        dtype=reader.mixed_precision,
    )
    return train_task(options, accelerator, task, stream, settings, record)
