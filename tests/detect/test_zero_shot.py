"""Zero-shot detectors on tiny models: the library's own answers, in the right pixels, under the right label."""

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

from dpt.claims.boxes import Box
from dpt.claims.detections import DetectConfig, Detection
from dpt.detect.base import clip_boxes
from dpt.detect.grounding_dino import GroundingDino
from dpt.detect.owl import Owl
from dpt.detect.zero_shot import ZeroShotDetector, open_zero_shot
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
def test_every_proposal_is_an_object_of_one_phrase_within_the_picture(
    folders: dict[str, Path], kind: str, size: tuple[int, int]
) -> None:
    detector = open_zero_shot(str(folders[kind]), ALL, device="cpu")
    (seen,) = detector.detect([picture(*size)], [PHRASES])
    proposals = 10 if kind == "grounding-dino" else 16
    assert len(seen.objects) + seen.outside == proposals
    for one in seen.objects:
        assert one.label in PHRASES and 0 <= one.confidence <= 1 and one.colour is None
        assert 0 <= one.box.x0 < one.box.x1 <= size[1] and 0 <= one.box.y0 < one.box.y1 <= size[0]


@pytest.mark.parametrize("kind", ["owlv2", "owlvit"])
@pytest.mark.parametrize("size", [(24, 40), (40, 24)])
def test_owls_answer_as_the_library_reads_them(folders: dict[str, Path], kind: str, size: tuple[int, int]) -> None:
    """Its own post-processing, on a picture that is not square: where the two versions differ."""
    detector = open_zero_shot(str(folders[kind]), ALL, device="cpu")
    owl: Any = detector.model
    assert isinstance(owl, Owl)
    image = picture(*size)
    inputs = {
        **owl.tokenizer([ALL.sentence(one) for one in PHRASES], padding="max_length", max_length=16,
                        return_tensors="pt"),
        **owl.processor(image, return_tensors="pt"),
    }  # fmt: skip
    with torch.no_grad():
        out = owl.model(**inputs)
    (told,) = owl.processor.post_process_object_detection(out, 0.0, [size])
    raw = [
        Detection(PHRASES[label], Box(*box), score)
        for score, label, box in zip(
            told["scores"].tolist(), told["labels"].tolist(), told["boxes"].tolist(), strict=True
        )
    ]
    (seen,) = detector.detect([image], [PHRASES])
    _same(seen.objects, clip_boxes(replace(seen, objects=tuple(raw)), size[1], size[0]).objects)


def test_grounding_dino_answers_as_the_model_says(folders: dict[str, Path]) -> None:
    detector = open_zero_shot(str(folders["grounding-dino"]), ALL, device="cpu")
    model: Any = detector.model
    assert isinstance(model, GroundingDino)
    ids, spans = model.text(["car", "red dog"])
    tokens = torch.tensor([ids])
    pixels = model.processor(picture(), return_tensors="pt")
    with torch.no_grad():
        out = model.model(pixel_values=pixels.pixel_values, input_ids=tokens)
    scores, corners = model.answer(picture(), ["car", "red dog"], ALL)
    by_token = out.logits[0].sigmoid()
    torch.testing.assert_close(scores[:, 0], by_token[:, 1])
    torch.testing.assert_close(scores[:, 1], by_token[:, 3:5].mean(-1))
    middle = (corners[:, :2] + corners[:, 2:]) / 2
    torch.testing.assert_close(middle, out.pred_boxes[0, :, :2] * torch.tensor([40.0, 24.0]), rtol=0, atol=1e-4)
    assert spans == [(1, 2), (3, 5)]


def test_a_carrot_is_spelled_with_a_car_and_still_is_none(folders: dict[str, Path]) -> None:
    model: Any = open_zero_shot(str(folders["grounding-dino"]), ALL, device="cpu").model
    ids, spans = model.text(["carrot", "car"])
    words = [model.tokenizer.convert_ids_to_tokens(ids[start:end]) for start, end in spans]
    assert words == [["car", "##rot"], ["car"]]
    assert ids == [101, *ids[1:3], 1012, ids[4], 1012, 102]


class Told:
    """A model that answers what it is told to."""

    def __init__(self, scores: list[list[float]], corners: list[list[float]]) -> None:
        self.scores, self.corners = torch.tensor(scores), torch.tensor(corners)

    def answer(self, image: Any, phrases: Any, asking: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scores, self.corners


def told(asking: DetectConfig, scores: list[list[float]], corners: list[list[float]]) -> ZeroShotDetector:
    return ZeroShotDetector(Told(scores, corners), "the owl", asking)


def test_a_box_belongs_to_the_phrase_that_fits_best_and_must_score_enough() -> None:
    boxes = [[0.0, 0, 10, 10], [20.0, 0, 30, 10], [0.0, 12, 10, 22]]
    scores = [[0.9, 0.8], [0.5, 0.5], [0.1, 0.2]]
    (seen,) = told(replace(ALL, threshold=0.2), scores, boxes).detect([picture()], [["car", "dog"]])
    assert [one.label for one in seen.objects] == ["car", "car", "dog"]  # of equal scores, the phrase named first
    (seen,) = told(replace(ALL, threshold=0.2, above=True), scores, boxes).detect([picture()], [["car", "dog"]])
    assert [one.label for one in seen.objects] == ["car", "car", "dog"]  # 0.2 in 32 bits lies above 0.2
    (seen,) = told(replace(ALL, threshold=0.5, above=True), scores, boxes).detect([picture()], [["car", "dog"]])
    assert [one.label for one in seen.objects] == ["car"]


def test_boxes_on_one_spot_are_one_for_each_label() -> None:
    boxes = [[0.0, 0, 10, 10], [1.0, 0, 11, 10], [0.0, 0, 10, 10]]
    scores = [[0.9, 0.1], [0.8, 0.1], [0.1, 0.7]]
    (seen,) = told(replace(ALL, nms=0.15), scores, boxes).detect([picture()], [["car", "dog"]])
    assert [(one.label, round(one.confidence, 3)) for one in seen.objects] == [("car", 0.9), ("dog", 0.7)]


def test_boxes_outside_are_cut_and_counted_and_no_number_is_refused() -> None:
    boxes = [[-5.0, 0, 10, 10], [50.0, 0, 60, 10]]
    (seen,) = told(ALL, [[0.9], [0.8]], boxes).detect([picture()], [["car"]])
    assert [one.box for one in seen.objects] == [Box(0, 0, 10, 10)] and (seen.clipped, seen.outside) == (1, 1)
    for scores, corners in (([[0.9], [float("nan")]], boxes), ([[0.9], [0.8]], [[0.0, 0, float("nan"), 1]] * 2)):
        with pytest.raises(UserError, match="the owl answered with scores or boxes that are not numbers"):
            told(ALL, scores, corners).detect([picture()], [["car"]])


def test_nothing_asked_is_nothing_seen() -> None:
    (seen,) = told(ALL, [[0.9]], [[0.0, 0, 9, 9]]).detect([picture()], [[]])
    assert seen.objects == ()


def test_colours_are_named_out_of_the_suites(folders: dict[str, Path], tmp_path: Path) -> None:
    asking = replace(ALL, colours=("red", "blue"))
    colours = Clip.open(str(tiny_vision.clip(tmp_path / "clip")), device="cpu")
    detector = open_zero_shot(str(folders["owlv2"]), asking, colours, device="cpu")
    (seen,) = detector.detect([picture()], [["car"]])
    assert {one.colour for one in seen.objects} <= {"red", "blue"} and seen.objects
    assert detector.identity.endswith(f"colours by {colours.identity}") and colours.identity.startswith("CLIP clip ")


def test_an_identity_tells_the_weights_and_the_rules(folders: dict[str, Path], tmp_path: Path) -> None:
    one = open_zero_shot(str(folders["owlv2"]), ALL, device="cpu").identity
    other = open_zero_shot(str(tiny_vision.owl(tmp_path / "owlv2", seed=1)), ALL, device="cpu").identity
    assert one.startswith("owlv2 ") and one.endswith("'a photo of {a} {noun}' score >= 0 no NMS")
    assert one != other and str(tmp_path) not in other


@pytest.mark.parametrize(
    ("kind", "phrases", "sentence"),
    [("owlv2", ["car " * 20], "the detector reads 16 tokens, too few for 'a photo of a car car"),
     ("grounding-dino", ["car"] * 40, "the detector reads 64 tokens, too few for 40 phrases")],
)  # fmt: skip
def test_what_is_too_long_is_refused(folders: dict[str, Path], kind: str, phrases: list[str], sentence: str) -> None:
    detector = open_zero_shot(str(folders[kind]), ALL, device="cpu")
    with pytest.raises(UserError, match=sentence):
        detector.detect([picture()], [phrases])


def test_folders_that_are_no_detector(folders: dict[str, Path], tmp_path: Path) -> None:
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


def test_weights_that_lack_a_part_are_refused(tmp_path: Path) -> None:
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


def _same(found: tuple[Detection, ...], expected: tuple[Detection, ...]) -> None:
    ranked = sorted(expected, key=lambda one: -one.confidence)
    assert [one.label for one in found] == [one.label for one in ranked]
    for one, other in zip(found, ranked, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-6)
        sides = [(one.box.x0, other.box.x0), (one.box.y0, other.box.y0), (one.box.x1, other.box.x1),
                 (one.box.y1, other.box.y1)]  # fmt: skip
        assert all(a == pytest.approx(b, abs=1e-3) for a, b in sides)
