"""Closed-set detectors from transformers that know the 80 classes of COCO: DETR, RT-DETR, D-FINE.

A box gets the name of its highest-scoring class; names of older label files ("sofa", "tvmonitor") become those of
COCO. Labels are class numbers, so "car" never matches a part of "carrot".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpt.backbone.device import resolve_device
from dpt.backbone.opening import HFModelFolder, open_hf_model
from dpt.claims.facts import Prompt
from dpt.claims.judge import DetectConfig, Detections
from dpt.claims.words import COCO_NOUNS
from dpt.detect.base import Detector, Image, detector_identity, read_boxes
from dpt.detect.zero_shot import corners
from dpt.errors import UserError
from dpt.score.clip import CHANNELS_LAST, Clip

COCO_CHECKPOINTS = {
    "detr": "facebook/detr-resnet-50",
    "rt-detr": "PekingU/rtdetr_r50vd",
    "d-fine": "ustc-community/dfine-medium-coco",
}
"""The checkpoint to open for the bare name of a model type."""

COCO_MODEL_TYPES = ("detr", "rt_detr", "rt_detr_v2", "d_fine")

OTHER_NAMES = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "hair dryer": "hair drier",
}
"""Names of Pascal VOC and of older COCO label files."""


@dataclass(frozen=True)
class CocoDetector:
    """A `Detector` with a fixed set of classes; queries are ignored."""

    model: Any
    processor: Any
    name: str
    class_names: tuple[str | None, ...]
    """By class number; None for a number that stands for no class."""
    config: DetectConfig
    no_object_last: bool
    """Whether scores are a softmax whose last class is "no object" (DETR), or a sigmoid per class."""
    colours: Clip | None = None
    """Classifies the colour of each box among the config's colours; with None, detections have no colour."""

    @property
    def identity(self) -> str:
        return detector_identity(self.name, self.config, self.colours)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name in self.class_names if name is not None))

    def detect(self, images: Sequence[Image], queries: Sequence[Sequence[str]] | None = None) -> list[Detections]:
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> Detections:
        scores, boxes = self._predict(image)
        return read_boxes(image, scores, boxes, self.class_names, self.name, self.config, self.colours)

    def _predict(self, image: Image) -> tuple[Tensor, Tensor]:
        """Scores (boxes,classes) in [0, 1], and corners (boxes,4) in pixels."""
        inputs = self.processor(image, return_tensors="pt", input_data_format=CHANNELS_LAST).to(self.model.device)
        with torch.no_grad():
            out = self.model(**inputs)
        logits = out.logits[0].float().cpu()
        scores = logits.softmax(-1)[:, :-1] if self.no_object_last else logits.sigmoid()
        height, width = image.shape[:2]
        return scores, corners(out.pred_boxes[0].float().cpu(), [width, height])


def open_coco(name: str, config: DetectConfig, colours: Clip | None = None, device: str | None = None) -> CocoDetector:
    """`name`: a folder, a hub id, or a key of `COCO_CHECKPOINTS`."""
    folder = open_hf_model(COCO_CHECKPOINTS.get(name, name), COCO_MODEL_TYPES, "COCO detector")
    kind, processor = _classes_of(folder.model_type)
    model = folder.load(kind).eval().to(resolve_device(device))
    return CocoDetector(
        model,
        folder.load(processor),
        folder.identity,
        class_names(folder),
        config,
        no_object_last=folder.model_type == "detr",
        colours=colours,
    )


def class_names(folder: HFModelFolder) -> tuple[str | None, ...]:
    """The class of each number in the model's config, under COCO's name; None for numbers without a class."""
    labels = folder.config.get("id2label")
    if not isinstance(labels, dict) or not all(
        str(number).isdecimal() and isinstance(label, str) for number, label in labels.items()
    ):
        raise UserError(f"{folder.name} has no id2label in its config.json: its class numbers have no names")
    by_number = {int(number): OTHER_NAMES.get(label, label) for number, label in labels.items()}
    if not by_number or max(by_number) > 10_000:
        raise UserError(f"the id2label of {folder.name} does not number its classes from 0")
    names = [by_number.get(number) for number in range(max(by_number) + 1)]
    known = tuple(name if name in COCO_NOUNS else None for name in names)
    if not any(known):
        raise UserError(f"{folder.name} knows none of the classes of COCO: its labels are {', '.join(map(str, names))}")
    return known


def check_colours(detector: Detector, prompts: Iterable[Prompt]) -> None:
    """Refuse prompts with colours for a detector of classes alone: every verdict on them would be false."""
    if not isinstance(detector, CocoDetector) or detector.colours is not None:
        return
    for prompt in prompts:
        if noun := next((noun for noun in prompt.nouns if noun.colour), None):
            raise UserError(
                f"{prompt.origin}: {detector.name} does not read colours, as of the {noun.colour} {noun.shape}: "
                "pass --colours, leave such categories out, or name a detector that takes queries"
            )


def _classes_of(model_type: str) -> tuple[Any, Any]:
    import transformers

    kinds: dict[str, Callable[[], tuple[Any, Any]]] = {
        "detr": lambda: (transformers.DetrForObjectDetection, transformers.DetrImageProcessorPil),
        "rt_detr": lambda: (transformers.RTDetrForObjectDetection, transformers.RTDetrImageProcessorPil),
        "rt_detr_v2": lambda: (transformers.RTDetrV2ForObjectDetection, transformers.RTDetrImageProcessorPil),
        "d_fine": lambda: (transformers.DFineForObjectDetection, transformers.RTDetrImageProcessorPil),
    }
    return kinds[model_type]()
