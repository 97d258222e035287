"""`train_stage1.py`: its flags are those of all training, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import tyro

from dpt.cli import train
from dpt.cli.train_options import REASONS, WARNED, RefusedOptions, TrainOptions

DRAWS_NOTHING = "draws nothing in stage 1, which leaves the UNet as it is: see txt2img.py"


@dataclass(frozen=True)
class RefusedInStage1(RefusedOptions):
    validation_prompts: tuple[str, ...] | None = None
    num_validation_images: int | None = None
    snr_gamma: float | None = None


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Stage1Options(TrainOptions):
    """Stage 1: train an adapter to match and to ground by the features of a frozen UNet.

    Stop and repeat at will: the same command goes on where it was left. Exit code 75 says that a run was asked to stop
    and has saved what it had.
    """

    refused: RefusedInStage1 = field(default_factory=RefusedInStage1)

    reasons: ClassVar[Mapping[str, str]] = {**REASONS, "snr_gamma": "weighs the denoising loss, which stage 1 has not"}
    warned: ClassVar[Mapping[str, str]] = {
        **WARNED,
        "validation_prompts": DRAWS_NOTHING,
        "num_validation_images": DRAWS_NOTHING,
    }

    def idle(self) -> dict[str, str]:
        return {**super().idle(), "prediction_type": "stage 1 reads features, which are the same whatever is predicted"}


def main(arguments: Sequence[str] | None = None) -> int:
    return train.main(Stage1Options, "train_stage1.py", "dpt.cli.train_tasks:stage1", arguments)
