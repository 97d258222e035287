"""Closed-set COCO detectors on tiny models: the library's own numbers, in image pixels, under COCO's names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpt.claims.facts import Absent, Count, Noun, Prompt
from dpt.claims.judge import DetectConfig
from dpt.detect.coco import CocoDetector, check_colours
from dpt.detect.registry import open_detector
from dpt.errors import UserError
from dpt.evaluation.suites.base import check_classes
from tests.evaluation import tiny_vision

ALL = DetectConfig("{noun}", 0.0)
NAMES = ("car", "carrot", "couch", "hot dog", "dog", "tv")


@pytest.fixture(scope="module", params=["detr", "rt_detr", "d_fine"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.coco_detector(tmp_path_factory.mktemp("coco") / request.param, request.param)


def opened(folder: Path, config: DetectConfig = ALL) -> CocoDetector:
    detector = open_detector(str(folder), config, device="cpu")
    assert isinstance(detector, CocoDetector)
    return detector


def picture(height: int = 24, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_scores_and_boxes_equal_the_librarys_post_processing(folder: Path) -> None:
    detector, image = opened(folder), picture()
    inputs = detector.processor(image, return_tensors="pt")
    with torch.no_grad():
        out = detector.model(**inputs)
    (expected,) = detector.processor.post_process_object_detection(out, threshold=0.0, target_sizes=[(24, 40)])
    scores, boxes = detector._predict(image)
    pairs = {
        (int(label), round(score, 5), tuple(round(side, 3) for side in box))
        for label, score, box in zip(
            expected["labels"].tolist(), expected["scores"].tolist(), expected["boxes"].tolist(), strict=True
        )
    }
    best, labels = scores.max(-1)
    detections = {
        (int(label), round(score, 5), tuple(round(side, 3) for side in box))
        for label, score, box in zip(labels.tolist(), best.tolist(), boxes.tolist(), strict=True)
    }
    assert detections <= pairs if detector.no_object_last else len(detections & pairs) >= 1
    top = max(pairs, key=lambda pair: pair[1])
    assert top in detections  # the best box of all is in both, whichever way they rank the rest


def test_labels_are_classes_boxes_lie_in_the_image_and_thresholds_are_monotonic(folder: Path) -> None:
    detector = opened(folder)
    assert detector.classes == NAMES
    (every,) = detector.detect([picture()], [["car"]])
    assert every.objects and {detection.label for detection in every.objects} <= set(NAMES)
    for detection in every.objects:
        box = detection.box
        assert 0 <= box.x0 < box.x1 <= 40 and 0 <= box.y0 < box.y1 <= 24 and 0 <= detection.confidence <= 1
    middle = sorted(detection.confidence for detection in every.objects)[len(every.objects) // 2]
    (fewer,) = opened(folder, replace(ALL, threshold=middle, above=True)).detect([picture()])
    assert fewer.objects == tuple(detection for detection in every.objects if detection.confidence > middle)
    both = detector.detect([picture(), picture(40, 24)])
    assert both[0] == every and both[1] != every


def test_a_class_never_takes_the_place_of_another_whose_name_contains_it(folder: Path) -> None:
    detector = opened(folder)
    logits = torch.full((1, 1, 8 if detector.no_object_last else 7), -9.0)
    for number, name in ((0, "car"), (1, "carrot"), (4, "hot dog"), (5, "dog"), (3, "couch"), (2, None)):
        sure = logits.clone()
        sure[..., number] = 9.0

        class Fixed:
            device = torch.device("cpu")

            def __call__(self, logits: torch.Tensor = sure, **inputs: object) -> object:
                boxes = torch.full((1, 1, 4), 0.5)
                return type("Out", (), {"logits": logits, "pred_boxes": boxes})

        (detections,) = replace(detector, model=Fixed()).detect([picture()])
        assert [detection.label for detection in detections.objects] == ([] if name is None else [name])


def test_unknown_nouns_colours_and_labels_are_refused(tmp_path: Path) -> None:
    folder = tiny_vision.coco_detector(tmp_path / "detr", "detr")
    detector = opened(folder)
    kite, red = Noun(shape="kite"), Noun("red", "car")
    with pytest.raises(UserError, match="does not detect 'kite'; its classes are car, carrot"):
        check_classes([Prompt("1", "x", "a kite", (Count(kite, 1),))], detector.classes, "the detector")
    check_colours(detector, [Prompt("1", "x", "no car", (Absent(Noun(shape="car")),))])
    with pytest.raises(UserError, match=r"prompt 1: detr .* does not read colours, as of the red car: pass --colours"):
        check_colours(detector, [Prompt("1", "x", "a red car", (Count(red, 1),))])
    birds = tiny_vision.coco_detector(tmp_path / "birds", "detr", labels={0: "robin", 1: "wren"})
    with pytest.raises(UserError, match="knows none of the classes of COCO: its labels are robin, wren"):
        opened(birds)
    with pytest.raises(UserError, match=r"is a clip model, and a detector is one of owlv2, owlvit, .*d_fine"):
        open_detector(str(tiny_vision.clip(tmp_path / "clip")), ALL)


def test_colours_are_named_by_clip(tmp_path: Path) -> None:
    class Redder:
        identity = "a clip"

        def nearest(self, images: object, texts: list[str]) -> list[int]:
            assert texts[1].startswith("a photo of a blue ")
            return [1]

    config = replace(ALL, colours=("red", "blue"))
    detector = replace(opened(tiny_vision.coco_detector(tmp_path, "detr"), config), colours=Redder())  # type: ignore[arg-type]
    (detections,) = detector.detect([picture()])
    assert {detection.colour for detection in detections.objects} == {"blue"}
    check_colours(detector, [Prompt("1", "x", "a red car", (Count(Noun("red", "car"), 1),))])
