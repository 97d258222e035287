"""`dpt ipr run`: all rounds of iterative prompt relabelling."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dpt.distributed import processes, take_own_gpu
from dpt.methods.ipr.config import IPRConfig

Precision = Literal["no", "fp16", "bf16"]


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class IPRRunOptions(IPRConfig):
    """Sample, detect, relabel, merge, train, measure; and again.

    Interrupt and repeat at will: the same command continues, between rounds and within them.
    """

    out: Path = Path("outputs/ipr")
    """The folder of the run."""
    mixed_precision: Annotated[Precision | None, tyro.conf.arg(metavar="no|fp16|bf16")] = None
    """Number format of the UNet and the text encoder; default: by the device. Trained weights are float32."""


def run(options: IPRRunOptions) -> None:
    from dataclasses import fields

    from dpt.methods.ipr.rounds import IPRRun
    from dpt.training.engine.interrupts import EXIT_STOPPED

    config = IPRConfig(**{field.name: getattr(options, field.name) for field in fields(IPRConfig)})
    dtype = "float32" if options.mixed_precision == "no" else options.mixed_precision
    with processes() as group:
        take_own_gpu()
        progress = show_progress if group.is_main else no_progress
        finished = IPRRun(config, options.out, dtype, group, print if group.is_main else _silent, progress).run()
    if not finished:
        sys.exit(EXIT_STOPPED)


def show_progress(what: str, total: int) -> Callable[[int], None]:
    from tqdm import tqdm

    bar = tqdm(total=total, desc=what, unit="image", leave=False)

    def done(n: int) -> None:
        bar.update(n)
        if bar.n >= total:
            bar.close()

    return done


def no_progress(what: str, total: int) -> Callable[[int], None]:
    return lambda n: None


def _silent(text: str) -> None:
    pass
