"""Discriminative probing and tuning for text-to-image diffusion models.

The names in `__all__` are the public API; each is imported from its room when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from dpt.adapter import Adapter as Adapter
    from dpt.backbone import Backbone as Backbone
    from dpt.backbone import Condition as Condition
    from dpt.backbone import open_backbone as open_backbone
    from dpt.checkpoints import open_checkpoint as open_checkpoint
    from dpt.detect.registry import open_detector as open_detector
    from dpt.errors import UserError as UserError
    from dpt.lora import Lora as Lora
    from dpt.lora import LoraConfig as LoraConfig
    from dpt.methods.registry import parse_methods as parse_methods
    from dpt.sampling.draw import Request as Request
    from dpt.sampling.draw import SamplingSettings as SamplingSettings
    from dpt.sampling.draw import draw as draw
    from dpt.sampling.options import Correction as Correction
    from dpt.sampling.pipeline import DPTPipeline as DPTPipeline
    from dpt.score.matching import Scorer as Scorer
    from dpt.training.engine.loop import run_task as run_task
    from dpt.training.engine.settings import TrainSettings as TrainSettings

PUBLIC = {
    "DPTPipeline": "dpt.sampling.pipeline",
    "Backbone": "dpt.backbone",
    "Condition": "dpt.backbone",
    "open_backbone": "dpt.backbone",
    "Adapter": "dpt.adapter",
    "Lora": "dpt.lora",
    "LoraConfig": "dpt.lora",
    "open_checkpoint": "dpt.checkpoints",
    "Scorer": "dpt.score.matching",
    "Correction": "dpt.sampling.options",
    "Request": "dpt.sampling.draw",
    "SamplingSettings": "dpt.sampling.draw",
    "draw": "dpt.sampling.draw",
    "run_task": "dpt.training.engine.loop",
    "TrainSettings": "dpt.training.engine.settings",
    "open_detector": "dpt.detect.registry",
    "parse_methods": "dpt.methods.registry",
    "UserError": "dpt.errors",
}
"""The room of each public name."""

__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'dpt' has no attribute {name!r}")
    value = getattr(importlib.import_module(PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
