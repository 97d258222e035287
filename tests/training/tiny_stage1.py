"""Stage 1 on a tiny model and rendered scenes, for the tests, the golden trace and the two-process run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dpt.adapter import Adapter, config_for
from dpt.adapter.model import BackbonePhraseEncoder
from dpt.backbone import Backbone, open_backbone
from dpt.data.example import Batch
from dpt.data.images import Framing
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import POCKET_WORLD
from dpt.data.stream import Stream
from dpt.distributed import Processes, processes
from dpt.training.engine.loop import Loop
from dpt.training.engine.run_folder import RunConfig
from dpt.training.engine.settings import TrainSettings
from dpt.training.tasks.stages import Stage1
from tests import tiny_models

FEATURE = "up0"
SMALL = {"hidden_dim": 16, "nheads": 2, "dim_feedforward": 32, "num_queries_matching": 3, "num_queries_rec": 5}
FRAMING = Framing(64)


def model(folder: Path) -> Path:
    return tiny_models.save(tiny_models.POCKET, folder)


def task(backbone: Backbone, validation: int = 6, adapter: Mapping[str, Any] | None = None, **changes: Any) -> Stage1:
    width = backbone.text_width
    shape = {**SMALL, "text_encoder_type": "backbone", **(adapter or {})}
    torch.manual_seed(0)
    built = Adapter(config_for(backbone, FEATURE, width, **shape))
    held_out = Stream(SceneSource(POCKET_WORLD, 0, "val", FRAMING, validation), 0, shuffle=False)
    return Stage1(backbone, built, BackbonePhraseEncoder(backbone), {"scenes": held_out}, val_batch_size=4, **changes)


def stream(seed: int = 1337, framing: Framing = FRAMING) -> Stream:
    return Stream(SceneSource(POCKET_WORLD, seed, "train", framing), seed)


def loop(root: Path, built: Stage1, among: Processes | None = None, **changes: Any) -> Loop[Batch]:
    defaults = {"max_train_steps": 10, "train_batch_size": 2, "logging_steps": 1, "validation_steps": 0}
    settings = TrainSettings(**{**defaults, **changes})
    return Loop(built, stream(settings.seed), settings, root, RunConfig({}), among)


def losses(root: Path) -> list[dict[str, float]]:
    """The losses of each logged step, without timings."""
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    names = ("i2t", "t2i", "ce", "bbox", "giou", "align", "loss")
    return [{name: line[name] for name in names} for line in lines if "loss" in line]


if __name__ == "__main__":  # python -m tests.training.tiny_stage1 MODEL ROOT BATCH: one process of several
    opened = open_backbone(sys.argv[1], device="cpu")
    with processes() as group:
        built = task(opened, adapter={"dropout": 0.0})
        loop(Path(sys.argv[2]), built, group, train_batch_size=int(sys.argv[3])).run()
