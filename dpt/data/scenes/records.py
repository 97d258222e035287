"""The records of the published file formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpt.claims.boxes import Box
from dpt.claims.words import SHAPES
from dpt.data.scenes.referring import SceneExpression
from dpt.data.scenes.world import Scene

Record = dict[str, Any]


CATEGORIES = [{"id": i + 1, "name": shape, "supercategory": "shape"} for i, shape in enumerate(SHAPES)]


def image_name(split: str, id_: int, suffix: str) -> str:
    return f"COCO_{split}_{id_:012d}.{suffix}"


def image_record(id_: int, file_name: str, scene: Scene) -> Record:
    return {"id": id_, "file_name": file_name, "height": scene.image_size, "width": scene.image_size}


def coco_box(box: Box) -> list[float]:
    return [round(number, 3) for number in (box.x0, box.y0, box.width, box.height)]


def captions_file(images: Sequence[Record], captions: Sequence[tuple[int, str]]) -> Record:
    """COCO captions, out of image records and (image id, caption)."""
    return {
        "info": {"description": "rendered scenes of coloured shapes"},
        "licenses": [],
        "images": list(images),
        "annotations": [
            {"id": id_, "image_id": image_id, "caption": text} for id_, (image_id, text) in enumerate(captions)
        ],
    }


@dataclass(frozen=True)
class SceneReferral:
    """An expression of an image."""

    image: Record
    expression: SceneExpression
    shape: str
    dataset: str


def referring_file(referrals: Sequence[SceneReferral], first_id: int) -> Record:
    """MDETR's format: one image entry per expression, with exactly one annotation."""
    images, annotations = [], []
    for id_, referral in enumerate(referrals, first_id):
        images.append(
            {
                **referral.image,
                "id": id_,
                "original_id": referral.image["id"],
                "caption": referral.expression.text,
                "dataset_name": referral.dataset,
            }
        )
        annotations.append(
            {
                "id": id_,
                "image_id": id_,
                "original_id": referral.image["id"],
                "category_id": SHAPES.index(referral.shape) + 1,
                "bbox": coco_box(referral.expression.box),
                "area": round(referral.expression.box.width * referral.expression.box.height, 3),
                "iscrowd": 0,
                "tokens_positive": [list(referral.expression.span)],
            }
        )
    return {"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES}


def prompt_record(id_: int, category: str, text: str, scene: Scene) -> Record:
    return {
        "img_id": id_,
        "name": category,
        "captions": text,
        "width": scene.image_size,
        "height": scene.image_size,
        "bbox": [coco_box(thing.box) for thing in scene.objects],
        "label": [thing.shape for thing in scene.objects],
    }
