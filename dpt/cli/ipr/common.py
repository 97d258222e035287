"""Helpers of the `dpt ipr` commands: progress bars, number formats, and the detector of a prompt file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dpt.embedded import EMBEDDED

if TYPE_CHECKING:
    from dpt.claims.facts import Prompt
    from dpt.evaluation.suites.base import Suite
    from dpt.methods.ipr.config import DetectorConfig
    from dpt.methods.ipr.detecting import OpenedDetector
    from dpt.methods.ipr.sampling import ModelState

Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class IPRModelOptions:
    """The model of a round."""

    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    ckpt: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER|FILE")] = None
    """A LoRA to sample with, or to start the training from."""
    round: int = 0
    """Number of the round. File names and noise depend on it, and so does the entry of --num_train_epochs, if that has
    several."""
    seed: int = 0
    mixed_precision: Annotated[Precision | None, tyro.conf.arg(metavar="no|fp16|bf16")] = None
    """Number format of the UNet and the text encoder; default: by the device."""

    @property
    def state(self) -> ModelState:
        from dpt.methods.ipr.sampling import ModelState

        return ModelState(self.pretrained_model_name_or_path, self.ckpt)


def dtype_of(precision: Precision | None) -> str | None:
    return "float32" if precision == "no" else precision


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


def detector_for(config: DetectorConfig, suite: Suite, prompts: Iterable[Prompt]) -> OpenedDetector:
    """The detector that the flags choose, or else the default one of the suite."""
    from dpt.methods.ipr.detecting import open_detector

    assert suite.detect_config is not None
    coloured = any(noun.colour for prompt in prompts for noun in prompt.nouns)
    return open_detector(config, suite.detector or "owlv2", suite.detect_config, coloured)
