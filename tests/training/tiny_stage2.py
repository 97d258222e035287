"""Stage 2 on a tiny UNet or transformer and rendered scenes, for the tests, the golden trace and two-process runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dpt.adapter import Adapter, config_for
from dpt.adapter.model import BackbonePhraseEncoder
from dpt.backbone import Backbone, open_backbone
from dpt.backbone.mmdit import TransformerBackbone
from dpt.data.example import Batch
from dpt.data.images import Framing
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
from tests import tiny_transformers
from tests.training.tiny_stage1 import FRAMING, SMALL, stream

FEATURE, TRANSFORMER_FEATURE = "up1", "block1"
TRANSFORMER_FRAMING = Framing(16)


def transformer(folder: Path) -> Path:
    return tiny_transformers.save(tiny_transformers.sd3(), folder)


def held_out(examples: int = 6, framing: Framing = FRAMING) -> dict[str, Stream]:
    return {"scenes": Stream(SceneSource(POCKET_WORLD, 0, "val", framing, examples), 0, shuffle=False)}


def task(
    backbone: Backbone,
    lora: LoraConfig | None = None,
    adapter: Mapping[str, Any] | None = None,
    validation: int = 6,
    **changes: Any,
) -> Stage2:
    width = backbone.text_width
    is_transformer = isinstance(backbone, TransformerBackbone)
    feature, framing = (TRANSFORMER_FEATURE, TRANSFORMER_FRAMING) if is_transformer else (FEATURE, FRAMING)
    torch.manual_seed(0)
    shape = {**SMALL, "text_encoder_type": "backbone", "dropout": 0.0, **(adapter or {})}
    built = Adapter(config_for(backbone, feature, width, **shape))
    added = Lora(backbone, lora or LoraConfig(rank=2), seed=0)
    options = Stage2Config(**{"val_batch_size": 4, **changes})
    return Stage2(backbone, built, added, BackbonePhraseEncoder(backbone), held_out(validation, framing), options)


def control(backbone: Backbone, lora: LoraConfig | None = None, **changes: Any) -> PlainLora:
    added = Lora(backbone, lora or LoraConfig(rank=2), seed=0)
    return PlainLora(backbone, added, held_out(), val_batch_size=4, **changes)


def loop(
    root: Path,
    built: Task[Batch],
    among: Processes | None = None,
    framing: Framing = FRAMING,
    **changes: Any,
) -> Loop[Batch]:
    defaults = {"max_train_steps": 10, "train_batch_size": 2, "logging_steps": 1, "validation_steps": 0}
    settings = TrainSettings(**{**defaults, **changes})
    return Loop(built, stream(settings.seed, framing), settings, root, RunConfig({}), among)


if __name__ == "__main__":  # python -m tests.training.tiny_stage2 MODEL ROOT BATCH: one process of several
    opened = open_backbone(sys.argv[1], device="cpu")
    size = TRANSFORMER_FRAMING if isinstance(opened, TransformerBackbone) else FRAMING
    with processes() as own:
        loop(Path(sys.argv[2]), task(opened), own, size, train_batch_size=int(sys.argv[3])).run()
