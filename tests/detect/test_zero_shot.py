"""Zero-shot detectors on tiny models: their outputs equal the library's, in image pixels, with the right label."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dpt.claims.facts import Box
from dpt.claims.judge import DetectConfig, Detection
from dpt.detect.base import clip_boxes
from dpt.detect.zero_shot import GroundingDino, Owl, ZeroShotDetector, open_zero_shot
from dpt.errors import UserError
from dpt.score.clip import Clip
from tests.evaluation import tiny_vision

ALL = DetectConfig("a photo of {a} {noun}", 0.0)
KINDS: dict[str, Callable[[Path], Path]] = {
    "owlv2": tiny_vision.owl,
    "owlvit": lambda folder: tiny_vision.owl(folder, version=1),
    "grounding-dino": tiny_vision.grounding_dino,
}
PHRASES = ["car", "carrot", "dog"]


def picture(height: int = 24, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("detectors")
    return {name: save(root / name) for name, save in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(24, 40), (40, 24), (32, 32)])
def test_every_proposal_has_a_phrase_as_label_and_lies_within_the_image(
    folders: dict[str, Path], kind: str, size: tuple[int, int]
) -> None:
    detector = open_zero_shot(str(folders[kind]), ALL, device="cpu")
    (detections,) = detector.detect([picture(*size)], [PHRASES])
    proposals = 10 if kind == "grounding-dino" else 16
    assert len(detections.objects) + detections.outside == proposals
    for detection in detections.objects:
        assert detection.label in PHRASES and 0 <= detection.confidence <= 1 and detection.colour is None
        box = detection.box
        assert 0 <= box.x0 < box.x1 <= size[1] and 0 <= box.y0 < box.y1 <= size[0]


@pytest.mark.parametrize("kind", ["owlv2", "owlvit"])
@pytest.mark.parametrize("size", [(24, 40), (40, 24)])
def test_owl_detections_equal_the_librarys_post_processing(
    folders: dict[str, Path], kind: str, size: tuple[int, int]
) -> None:
    """On images that are not square: there the two versions differ."""
    detector = open_zero_shot(str(folders[kind]), ALL, device="cpu")
    owl: Any = detector.model
    assert isinstance(owl, Owl)
    image = picture(*size)
    inputs = {
        **owl.tokenizer([ALL.sentence(phrase) for phrase in PHRASES], padding="max_length", max_length=16,
                        return_tensors="pt"),
        **owl.processor(image, return_tensors="pt"),
    }  # fmt: skip
    with torch.no_grad():
        out = owl.model(**inputs)
    (expected,) = owl.processor.post_process_object_detection(out, 0.0, [size])
    raw = [
        Detection(PHRASES[label], Box(*box), score)
        for score, label, box in zip(
            expected["scores"].tolist(), expected["labels"].tolist(), expected["boxes"].tolist(), strict=True
        )
    ]
    (detections,) = detector.detect([image], [PHRASES])
    _assert_same(detections.objects, clip_boxes(replace(detections, objects=tuple(raw)), size[1], size[0]).objects)


def test_grounding_dino_scores_are_means_over_the_phrases_tokens(folders: dict[str, Path]) -> None:
    detector = open_zero_shot(str(folders["grounding-dino"]), ALL, device="cpu")
    model: Any = detector.model
    assert isinstance(model, GroundingDino)
    ids, spans = model.tokenize(["car", "red dog"])
    tokens = torch.tensor([ids])
    pixels = model.processor(picture(), return_tensors="pt")
    with torch.no_grad():
        out = model.model(pixel_values=pixels.pixel_values, input_ids=tokens)
    scores, corners = model.predict(picture(), ["car", "red dog"], ALL)
    by_token = out.logits[0].sigmoid()
    torch.testing.assert_close(scores[:, 0], by_token[:, 1])
    torch.testing.assert_close(scores[:, 1], by_token[:, 3:5].mean(-1))
    middle = (corners[:, :2] + corners[:, 2:]) / 2
    torch.testing.assert_close(middle, out.pred_boxes[0, :, :2] * torch.tensor([40.0, 24.0]), rtol=0, atol=1e-4)
    assert spans == [(1, 2), (3, 5)]


def test_phrases_are_separated_by_position_even_with_shared_tokens(folders: dict[str, Path]) -> None:
    model: Any = open_zero_shot(str(folders["grounding-dino"]), ALL, device="cpu").model
    ids, spans = model.tokenize(["carrot", "car"])
    words = [model.tokenizer.convert_ids_to_tokens(ids[start:end]) for start, end in spans]
    assert words == [["car", "##rot"], ["car"]]
    assert ids == [101, *ids[1:3], 1012, ids[4], 1012, 102]


class FixedModel:
    """A model with fixed outputs."""

    def __init__(self, scores: list[list[float]], corners: list[list[float]]) -> None:
        self.scores, self.corners = torch.tensor(scores), torch.tensor(corners)

    def predict(self, image: Any, phrases: Any, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scores, self.corners


def fixed_detector(config: DetectConfig, scores: list[list[float]], corners: list[list[float]]) -> ZeroShotDetector:
    return ZeroShotDetector(FixedModel(scores, corners), "the owl", config)


def test_a_box_gets_its_best_phrase_and_needs_the_threshold() -> None:
    boxes = [[0.0, 0, 10, 10], [20.0, 0, 30, 10], [0.0, 12, 10, 22]]
    scores = [[0.9, 0.8], [0.5, 0.5], [0.1, 0.2]]
    (detections,) = fixed_detector(replace(ALL, threshold=0.2), scores, boxes).detect([picture()], [["car", "dog"]])
    assert [o.label for o in detections.objects] == ["car", "car", "dog"]  # of equal scores, the first phrase
    (detections,) = fixed_detector(replace(ALL, threshold=0.2, above=True), scores, boxes).detect(
        [picture()], [["car", "dog"]]
    )
    assert [o.label for o in detections.objects] == ["car", "car", "dog"]  # 0.2 in 32 bits lies above 0.2
    (detections,) = fixed_detector(replace(ALL, threshold=0.5, above=True), scores, boxes).detect(
        [picture()], [["car", "dog"]]
    )
    assert [o.label for o in detections.objects] == ["car"]


def test_nms_keeps_one_box_per_label() -> None:
    boxes = [[0.0, 0, 10, 10], [1.0, 0, 11, 10], [0.0, 0, 10, 10]]
    scores = [[0.9, 0.1], [0.8, 0.1], [0.1, 0.7]]
    (detections,) = fixed_detector(replace(ALL, nms=0.15), scores, boxes).detect([picture()], [["car", "dog"]])
    assert [(o.label, round(o.confidence, 3)) for o in detections.objects] == [("car", 0.9), ("dog", 0.7)]


def test_boxes_are_clipped_and_nan_outputs_are_an_error() -> None:
    boxes = [[-5.0, 0, 10, 10], [50.0, 0, 60, 10]]
    (detections,) = fixed_detector(ALL, [[0.9], [0.8]], boxes).detect([picture()], [["car"]])
    assert [o.box for o in detections.objects] == [Box(0, 0, 10, 10)] and (detections.clipped, detections.outside) == (
        1,
        1,
    )
    for scores, corners in (([[0.9], [float("nan")]], boxes), ([[0.9], [0.8]], [[0.0, 0, float("nan"), 1]] * 2)):
        with pytest.raises(UserError, match="the owl returned NaN or infinite scores or boxes"):
            fixed_detector(ALL, scores, corners).detect([picture()], [["car"]])


def test_no_queries_give_no_detections() -> None:
    (detections,) = fixed_detector(ALL, [[0.9]], [[0.0, 0, 9, 9]]).detect([picture()], [[]])
    assert detections.objects == ()


def test_colours_are_classified_among_those_of_the_config(folders: dict[str, Path], tmp_path: Path) -> None:
    config = replace(ALL, colours=("red", "blue"))
    colours = Clip.open(str(tiny_vision.clip(tmp_path / "clip")), device="cpu")
    detector = open_zero_shot(str(folders["owlv2"]), config, colours, device="cpu")
    (detections,) = detector.detect([picture()], [["car"]])
    assert {o.colour for o in detections.objects} <= {"red", "blue"} and detections.objects
    assert detector.identity.endswith(f"colours by {colours.identity}") and colours.identity.startswith("CLIP clip ")


def test_the_identity_depends_on_weights_and_config(folders: dict[str, Path], tmp_path: Path) -> None:
    first = open_zero_shot(str(folders["owlv2"]), ALL, device="cpu").identity
    other = open_zero_shot(str(tiny_vision.owl(tmp_path / "owlv2", seed=1)), ALL, device="cpu").identity
    assert first.startswith("owlv2 ") and first.endswith("'a photo of {a} {noun}' score >= 0 no NMS")
    assert first != other and str(tmp_path) not in other


@pytest.mark.parametrize(
    ("kind", "phrases", "message"),
    [("owlv2", ["car " * 20], "'a photo of a car car .* has 26 tokens; the detector takes at most 16"),
     ("grounding-dino", ["car"] * 40, "40 phrases have 82 tokens; the detector takes at most 64")],
)  # fmt: skip
def test_too_many_tokens_are_an_error(folders: dict[str, Path], kind: str, phrases: list[str], message: str) -> None:
    detector = open_zero_shot(str(folders[kind]), ALL, device="cpu")
    with pytest.raises(UserError, match=message):
        detector.detect([picture()], [phrases])


def test_folders_without_a_detector_are_user_errors(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model folder"):
        open_zero_shot(str(tmp_path / "none"), ALL)
    with pytest.raises(UserError, match="is no zero-shot detector: it has no config"):
        open_zero_shot(str(tmp_path), ALL)
    with pytest.raises(UserError, match="is a clip model, and a zero-shot detector is one of owlv2, owlvit"):
        open_zero_shot(str(tiny_vision.clip(tmp_path / "clip")), ALL)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/config.json").write_text(json.dumps({"model_type": "owlv2"}))
    with pytest.raises(UserError, match="bare has no weights in the safetensors format"):
        open_zero_shot(str(tmp_path / "bare"), ALL)


def test_incomplete_weights_are_a_user_error(tmp_path: Path) -> None:
    folder = tiny_vision.owl(tmp_path / "owl")
    weights = load_file(folder / "model.safetensors")
    del weights["class_head.dense0.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError,
        match=r"weights in owl do not fit Owlv2ForObjectDetection: 1 tensors .* first class_head\.dense0\.weight",
    ):
        open_zero_shot(str(folder), ALL)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="owl cannot be opened as Owlv2ForObjectDetection"):
        open_zero_shot(str(folder), ALL)


def _assert_same(detections: tuple[Detection, ...], expected: tuple[Detection, ...]) -> None:
    ranked = sorted(expected, key=lambda detection: -detection.confidence)
    assert [o.label for o in detections] == [o.label for o in ranked]
    for actual, other in zip(detections, ranked, strict=True):
        assert actual.confidence == pytest.approx(other.confidence, abs=1e-6)
        sides = [(actual.box.x0, other.box.x0), (actual.box.y0, other.box.y0), (actual.box.x1, other.box.x1),
                 (actual.box.y1, other.box.y1)]  # fmt: skip
        assert all(a == pytest.approx(b, abs=1e-3) for a, b in sides)
