"""HPS tuning on a tiny Stable Diffusion 3 and plain images, for the tests and the two-process run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from dpt.backbone import Backbone, open_backbone
from dpt.data.example import Batch
from dpt.data.images import Framing
from dpt.data.preference.source import TuningConfig, tuning_data
from dpt.data.stream import Stream
from dpt.distributed import Processes, processes
from dpt.lora import Lora, LoraConfig
from dpt.training.engine.loop import Loop
from dpt.training.engine.run_folder import RunConfig
from dpt.training.engine.settings import TrainSettings
from dpt.training.tasks.denoising import HpsTuning, NoiseConfig
from tests import tiny_transformers

COUNTS = {"positive": 3, "negative": 2, "regularization": 4}


def model(folder: Path) -> Path:
    """The model, with the selected images in `selected` beside its parts."""
    tiny_transformers.save(tiny_transformers.sd3(), folder)
    selected = folder / "selected"
    rows = []
    for kind, count in COUNTS.items():
        (selected / kind).mkdir(parents=True)
        for number in range(count):
            name = f"{kind}/{number}.png"
            Image.new("RGB", (16, 16), (60 * number, 200 - 40 * number, 90)).save(selected / name)
            rows.append({"file_name": name, "prompt": f"{number} red circles", "type": kind})
    (selected / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def task(backbone: Backbone) -> HpsTuning:
    backbone.prepare_for_gradients()
    lora = Lora(backbone, LoraConfig(rank=2), seed=0)
    return HpsTuning(backbone, lora, noise=NoiseConfig(logit_mean=-0.8, logit_std=1.2), negative_prompt="Weird image. ")


def loop(root: Path, folder: Path, built: HpsTuning, among: Processes | None = None, **changes: Any) -> Loop[Batch]:
    config = TuningConfig(ratios=(2.0, 1.0, 1.0), negative_dropout=0.4)
    data = tuning_data(folder / "selected", None, None, None, config, Framing(16), seed=0)
    defaults = {
        "max_train_steps": 6, "train_batch_size": 2, "logging_steps": 1, "validation_steps": 0, "learning_rate": 1e-2,
    }  # fmt: skip
    settings = TrainSettings(**{**defaults, **changes})
    return Loop(built, Stream(data.source, settings.seed), settings, root, RunConfig({}), among)


def losses(root: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("mse", "loss")} for line in lines if "loss" in line]


if __name__ == "__main__":  # python -m tests.training.tiny_hps MODEL ROOT BATCH: one process of several
    place = Path(sys.argv[1])
    with processes() as own:
        loop(Path(sys.argv[2]), place, task(open_backbone(place, device="cpu")), own,
             train_batch_size=int(sys.argv[3])).run()  # fmt: skip
