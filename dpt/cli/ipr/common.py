"""Helpers of the `dpt ipr` commands: progress bars, number formats, and the detector of a prompt file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dpt.claims.facts import Prompt
    from dpt.evaluation.suites.base import Suite
    from dpt.methods.ipr.config import DetectorConfig
    from dpt.methods.ipr.detecting import OpenedDetector

Precision = Literal["no", "fp16", "bf16"]


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
