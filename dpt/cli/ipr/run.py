"""`dpt ipr run` and `train_ipr.py`: all rounds of iterative prompt relabelling."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dpt.cli.common.console import flag_value, parse, plain_warnings, warn
from dpt.cli.ipr.common import Precision, dtype_of, no_progress, show_progress
from dpt.distributed import processes, take_own_gpu
from dpt.errors import fail, run_command
from dpt.methods.ipr.config import RECIPES, IPRConfig
from dpt.training.engine.interrupts import EXIT_STOPPED


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class IPRRunOptions(IPRConfig):
    """Sample, detect, relabel, merge, train, measure; and again.

    Interrupt and repeat at will: the same command continues, between rounds and within them. Under accelerate launch,
    processes share the images and the training.
    """

    recipe: Annotated[Literal["sdv2", "sdv2-lora", "sdxl-lora"] | None, tyro.conf.arg(metavar="NAME")] = None
    """Start from the published hyper-parameters: sdv2 (the whole UNet), sdv2-lora or sdxl-lora. Other flags change
    them."""
    out: Path = Path("outputs/ipr")
    """Folder of the run."""
    mixed_precision: Annotated[Precision | None, tyro.conf.arg(metavar="no|fp16|bf16")] = None
    """Number format of the UNet and the text encoder; default: by the device. Trained weights are float32."""

    @classmethod
    def preset(cls, words: Sequence[str]) -> IPRRunOptions | None:
        """The options of the recipe that the command line names."""
        name = flag_value(words, "recipe")
        if name is None:
            return None
        if name not in RECIPES:
            fail(f"there is no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
        values = {field.name: getattr(RECIPES[name], field.name) for field in fields(IPRConfig)}
        return cls(**values, mixed_precision="fp16")

    @property
    def config(self) -> IPRConfig:
        return IPRConfig(**{field.name: getattr(self, field.name) for field in fields(IPRConfig)})


def run(options: IPRRunOptions) -> None:
    from dpt.methods.ipr.rounds import IPRRun

    with processes(cuda=True) as group:
        take_own_gpu()
        if group.is_main:
            for name, reason in options.config.unused_flags().items():
                warn(f"--{name} has no effect: {reason}")
        say: Callable[[str], None] = print if group.is_main else _silent
        progress = show_progress if group.is_main else no_progress
        finished = IPRRun(options.config, options.out, dtype_of(options.mixed_precision), group, say, progress).run()
    if not finished:
        sys.exit(EXIT_STOPPED)


def main(arguments: Sequence[str] | None = None) -> int:
    """For `accelerate launch train_ipr.py`."""
    words = sys.argv[1:] if arguments is None else arguments
    with plain_warnings():
        return run_command(lambda: run(parse(run, words, "train_ipr.py")))


def _silent(text: str) -> None:
    pass
