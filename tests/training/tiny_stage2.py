"""Stage 2 on a tiny model and rendered scenes, for the tests, the golden trace and the two-process run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dpt.adapter import Adapter, config_for
from dpt.adapter.model import BackbonePhraseEncoder
from dpt.backbone import Backbone, open_backbone
from dpt.data.example import Batch
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import POCKET_WORLD
from dpt.data.stream import Stream
from dpt.distributed import Processes, processes
from dpt.lora import Lora, LoraConfig
from dpt.training.engine.loop import Loop
from dpt.training.engine.run_folder import RunConfig
from dpt.training.engine.settings import TrainSettings
from dpt.training.engine.task import Task
from dpt.training.tasks.denoising import PlainLora
from dpt.training.tasks.stages import Stage2, Stage2Config
from tests.training.tiny_stage1 import FRAMING, SMALL, stream

FEATURE = "up1"


def held_out(examples: int = 6) -> dict[str, Stream]:
    return {"scenes": Stream(SceneSource(POCKET_WORLD, 0, "val", FRAMING, examples), 0, shuffle=False)}


def task(
    backbone: Backbone,
    lora: LoraConfig | None = None,
    adapter: Mapping[str, Any] | None = None,
    validation: int = 6,
    **changes: Any,
) -> Stage2:
    width = backbone.text_width
    torch.manual_seed(0)
    shape = {**SMALL, "text_encoder_type": "backbone", "dropout": 0.0, **(adapter or {})}
    built = Adapter(config_for(backbone, FEATURE, width, **shape))
    added = Lora(backbone, lora or LoraConfig(rank=2), seed=0)
    options = Stage2Config(**{"val_batch_size": 4, **changes})
    return Stage2(backbone, built, added, BackbonePhraseEncoder(backbone), held_out(validation), options)


def control(backbone: Backbone, lora: LoraConfig | None = None, **changes: Any) -> PlainLora:
    added = Lora(backbone, lora or LoraConfig(rank=2), seed=0)
    return PlainLora(backbone, added, held_out(), val_batch_size=4, **changes)


def loop(root: Path, built: Task[Batch], among: Processes | None = None, **changes: Any) -> Loop[Batch]:
    defaults = {"max_train_steps": 10, "train_batch_size": 2, "logging_steps": 1, "validation_steps": 0}
    settings = TrainSettings(**{**defaults, **changes})
    return Loop(built, stream(settings.seed), settings, root, RunConfig({}), among)


if __name__ == "__main__":  # python -m tests.training.tiny_stage2 MODEL ROOT BATCH: one process of several
    opened = open_backbone(sys.argv[1], device="cpu")
    with processes() as own:
        loop(Path(sys.argv[2]), task(opened), own, train_batch_size=int(sys.argv[3])).run()
