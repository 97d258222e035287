"""What the words of the tables name: tiny models, data, an adapter to begin with, a run to go on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dpt.adapter import Adapter, config_for
from dpt.adapter.io.native import save_adapter
from dpt.backbone import open_backbone
from tests import tiny_models, tiny_roberta
from tests.training import tiny_stage1

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "data" / "sample"


def make_places(folder: Path) -> dict[str, str]:
    model = tiny_stage1.model(folder / "model")
    places = {
        "model": model,
        "other": tiny_models.save(tiny_models.POCKET, folder / "other", seed=9),
        "sample": SAMPLE,
        "wide": wide_sample(folder / "wide"),
        "broken": broken_sample(folder / "broken"),
        "roberta": tiny_roberta.save(folder / "roberta", room=200),
        "first": adapter(model, folder / "first"),
        "elsewhere": folder / "elsewhere",
        "half": folder / "half" / "checkpoint-1",
    }
    return {name: str(place) for name, place in places.items()}


def wide_sample(folder: Path) -> Path:
    """The sample with pictures that are not square, and with half of its expressions under another name too."""
    shutil.copytree(SAMPLE, folder)
    for file in (folder / "coco" / "images").rglob("*.jpg"):
        with Image.open(file) as picture:
            picture.resize((picture.width * 2, picture.height)).save(file)
    expressions = folder / "ReC" / "mdetr" / "OpenSource"
    for file in (*expressions.iterdir(), *(folder / "coco" / "annotations").iterdir()):
        file.write_text(json.dumps(widened(json.loads(file.read_text()))))
    found = json.loads((expressions / "finetune_refall_train.json").read_text())
    found["images"] = found["images"][::2]
    kept = {one["id"] for one in found["images"]}
    found["annotations"] = [one for one in found["annotations"] if one["image_id"] in kept]
    (expressions / "finetune_refcoco_train.json").write_text(json.dumps(found))
    return folder


def broken_sample(folder: Path) -> Path:
    """The sample with a picture that is none."""
    shutil.copytree(SAMPLE, folder)
    sorted((folder / "coco" / "images" / "train2014").iterdir())[0].write_bytes(b"no picture")
    return folder


def widened(told: dict[str, Any]) -> dict[str, Any]:
    for one in told["images"]:
        if "width" in one:
            one["width"] *= 2
    for one in told["annotations"]:
        if "bbox" in one:
            x, y, width, height = one["bbox"]
            one["bbox"] = [2 * x, y, 2 * width, height]
    return told


def adapter(model: Path, folder: Path) -> Path:
    """Of the shape that the tables' commands ask for, with other weights than theirs begin with."""
    backbone = open_backbone(model, device="cpu")
    shape = {**tiny_stage1.SMALL, "text_encoder_type": "backbone"}
    torch.manual_seed(77)
    width = backbone.text_width
    built = Adapter(config_for(backbone, tiny_stage1.FEATURE, width, **shape))
    save_adapter(built, folder, **backbone.origin("tiny"))
    return folder


def stand_in_tracker(folder: Path) -> Path:
    """tensorboardX, as much as a run asks of it: accelerate takes what is installed under that name."""
    (folder / "tensorboardX-2.6.dist-info").mkdir(parents=True)
    (folder / "tensorboardX-2.6.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorboardX\n")
    (folder / "tensorboardX.py").write_text(
        "from pathlib import Path\n"
        "class SummaryWriter:\n"
        "    def __init__(self, folder):\n"
        "        self.file = Path(folder) / 'tfevents'\n"
        "        self.file.parent.mkdir(parents=True, exist_ok=True)\n"
        "    def add_scalar(self, *what, **more):\n"
        "        self.file.write_text(repr(what))\n"
        "    def __getattr__(self, name):\n"
        "        return lambda *what, **more: None\n"
    )
    return folder
