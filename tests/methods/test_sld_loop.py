"""The loop: rounds, ends, the best round, the router; closed on rendered scenes and on the palette model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dpt.claims.controller import propose
from dpt.claims.facts import Box, Noun
from dpt.claims.judge import DetectConfig, Detection, Detections, judge
from dpt.claims.layout import Layout, box_at, detections_of, layout_of, to_pixels
from dpt.claims.parse import ParsedPrompt, parse_prompt
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, Scene, SceneObject
from dpt.detect.base import Detector
from dpt.detect.oracle.noisy import NoisyOracle
from dpt.detect.oracle.oracle import Oracle
from dpt.detect.zero_shot import ZeroShotDetector
from dpt.evaluation.suites.pocket import suite
from dpt.keyed_random import KeyedRandom
from dpt.methods.sld.detecting import QUERIES, NounDetector, RepeatedReadings
from dpt.methods.sld.engine import EditedImage
from dpt.methods.sld.loop import CorrectionLoop
from dpt.methods.sld.method import Corrector
from dpt.methods.sld.settings import EngineSettings, LoopSettings

ORACLE = NounDetector(Oracle(POCKET_WORLD))


def rendered(layout: Layout) -> np.ndarray:
    """A scene with the objects of the layout."""
    things = []
    for thing in layout:
        if thing.readable:
            (x, y), side = to_pixels(thing.box, 64, 64).centre, 21.0
            box = box_at((x, y), side, side)
            things.append(SceneObject(thing.noun.shape or "", thing.noun.colour or "", "large", box))
    return render(Scene(tuple(things), "white"))


def random_scene(rng: KeyedRandom) -> np.ndarray:
    places = rng.sample([(0.2, 0.2), (0.8, 0.2), (0.2, 0.8), (0.8, 0.8)], rng.randrange(4))
    boxes = [to_pixels(box_at(place, 0.33, 0.33), 64, 64) for place in places]
    objects = [Detection(rng.choice(POCKET_WORLD.shapes), box, 1.0, rng.choice(POCKET_WORLD.colours)) for box in boxes]
    return rendered(layout_of(Detections(tuple(objects)), 64, 64))


class Renderer:
    """An engine that does what the plan says, and remembers what it was given."""

    def __init__(self, fails: int = 0) -> None:
        self.fails, self.calls = fails, 0

    def __call__(self, image: np.ndarray, edits: Any, parsed: Any, strength: float, seed: int) -> EditedImage:
        self.calls += 1
        goal = tuple(edit.goal for edit in edits if edit.goal is not None)
        return EditedImage(image if self.calls <= self.fails else rendered(goal), np.ones(image.shape[:2], bool))


PROMPTS = suite((), 8).prompts


def test_scenes_are_repaired_within_two_rounds_and_right_ones_are_unchanged() -> None:
    for number, prompt in enumerate(PROMPTS):
        engine = Renderer()
        loop = CorrectionLoop(ORACLE, engine, None)
        result = loop.run(random_scene(KeyedRandom("loop", number)), parse_prompt(prompt.text), seed=number)
        assert (result.status, result.ending) == ("right", "right"), prompt.text
        assert len(result.rounds) <= 3
        again = loop.run(result.best.image, parse_prompt(prompt.text), seed=number)
        assert (again.best.number, again.best.image is result.best.image) == (0, True)


def corrected_by(detector: Detector, readings: int, start: Callable[[int, ParsedPrompt], np.ndarray]) -> list[Any]:
    """Per prompt: whether the start and the result are right, by the exact oracle, and the rounds."""
    outcomes = []
    for number, prompt in enumerate(PROMPTS[::2]):
        parsed = parse_prompt(prompt.text)
        detect = RepeatedReadings(NounDetector(detector), readings)
        confirm = RepeatedReadings(detect.detect, 9) if readings > 1 else None
        loop = CorrectionLoop(detect, Renderer(), None, confirm=confirm)
        result = loop.run(start(number, parsed), parsed, seed=number)
        assert result.best.score >= result.rounds[0].score
        before, after = (judge(prompt, ORACLE(each.image, ())).passed for each in (result.rounds[0], result.best))
        outcomes.append((before, after, len(result.rounds)))
    return outcomes


def test_readings_that_vote_correct_wrong_images_and_leave_right_ones() -> None:
    noisy = NoisyOracle()
    wrong = corrected_by(noisy, 5, lambda number, parsed: random_scene(KeyedRandom("loop", number)))
    assert np.mean([after for _, after, _ in wrong]) >= 0.9
    right = corrected_by(noisy, 5, lambda number, parsed: rendered(propose(parsed, ())))
    assert all(before and after for before, after, _ in right)
    assert sum(rounds > 1 for _, _, rounds in right) <= 1
    trusting = corrected_by(noisy, 1, lambda number, parsed: rendered(propose(parsed, ())))
    assert sum(rounds > 1 for _, _, rounds in trusting) >= 4  # a single reading edits right images


PARSED = parse_prompt("a red circle to the left of a blue square")

WRONG = rendered(propose(parse_prompt("a red circle"), ()))


def test_an_engine_that_does_nothing_ends_unresolved_with_the_start_image() -> None:
    result = CorrectionLoop(ORACLE, Renderer(fails=99), None).run(WRONG, PARSED, 0)
    assert (result.status, result.ending, len(result.rounds)) == ("unresolved", "max rounds", 4)
    assert result.best.image is WRONG
    longer = LoopSettings(max_rounds=9)
    result = CorrectionLoop(ORACLE, Renderer(fails=99), None, longer).run(WRONG, PARSED, 0)
    assert (result.ending, len(result.rounds)) == ("repeated plan", 4)  # the last strength was tried


def test_strengths_decrease_and_later_rounds_can_succeed() -> None:
    result = CorrectionLoop(ORACLE, Renderer(fails=2), None).run(WRONG, PARSED, 0)
    assert [round_.strength for round_ in result.rounds] == [None, 0.6, 0.4, 0.2]
    assert (result.status, result.best.number) == ("right", 3)


def test_without_edits_the_loop_ends() -> None:
    loop = CorrectionLoop(ORACLE, Renderer(), None, controller=lambda parsed, layout: layout)
    assert loop.run(WRONG, PARSED, 0).ending == "no edits"


def test_a_worse_round_is_not_returned_and_not_continued() -> None:
    seen: list[bool] = []

    def spoil(image: np.ndarray, edits: Any, parsed: Any, strength: float, seed: int) -> EditedImage:
        seen.append(image is WRONG)
        return EditedImage(np.full_like(image, 128), np.ones(image.shape[:2], bool))

    result = CorrectionLoop(ORACLE, spoil, None).run(WRONG, PARSED, 0)
    assert result.best.image is WRONG
    assert all(seen)


@pytest.mark.parametrize(
    ("policy", "scene", "action"),
    [
        ("route", "one missing", "edit"),
        ("route", "all missing", "redraw"),
        ("route", "unreadable", "redraw"),
        ("edit", "all missing", "edit"),
        ("redraw", "one missing", "redraw"),
    ],
)
def test_the_router_edits_local_faults_and_samples_others_again(policy: Any, scene: str, action: str) -> None:
    parsed = parse_prompt("three red circles")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    images = {
        "one missing": rendered(propose(parse_prompt("two red circles"), ())),
        "all missing": rendered(()),
        "unreadable": noise,
    }
    right = rendered(propose(parsed, ()))
    loop = CorrectionLoop(ORACLE, Renderer(), lambda parsed, seed: right, LoopSettings(policy=policy))
    result = loop.run(images[scene], parsed, 0)
    assert result.rounds[1].action == action
    assert result.status == "right"
    never = CorrectionLoop(ORACLE, Renderer(), None, LoopSettings(policy="redraw"))
    assert never.run(images["one missing"], parsed, 0).rounds[1].action == "edit"  # nothing to draw it with


class TwoPasses:
    """An open-vocabulary detector with fixed boxes for its queries."""

    identity, classes = "stub", None

    def __init__(self, boxes: dict[str, list[tuple[Box, float]]]) -> None:
        self.boxes, self.queries = boxes, []  # type: ignore[var-annotated]

    def detect(self, images: Any, queries: Any = None) -> list[Detections]:
        self.queries.append(list(queries[0]))
        found = [Detection(q, box, score) for q in queries[0] for box, score in self.boxes.get(q, [])]
        return [Detections(tuple(found))]


def test_an_open_vocabulary_detector_is_queried_for_attributes_and_for_nouns() -> None:
    a, b = Box(0, 0, 20, 20), Box(30, 0, 50, 20)
    stub = TwoPasses({"red dog": [(a, 0.5), (b, 0.3)], "dog": [(a, 0.9), (b, 0.8)]})
    config = DetectConfig("image of {a} {noun}", 0.2, thresholds=(("attribute", 0.45),))
    image = np.zeros((64, 64, 3), np.uint8)
    detections = NounDetector(stub, config)(image, [Noun("red", "dog"), Noun(None, "dog")])
    assert stub.queries == [["red dog"], ["dog"]]
    assert [(d.label, d.colour) for d in detections.objects] == [("dog", "red"), ("dog", None)]
    layout = layout_of(detections, 64, 64)
    assert [thing.id for thing in layout] == ["red dog #1", "dog #1"]
    assert detections_of(layout, 64, 64).objects[1].label == "dog"
    assert ParsedPrompt("x", "llm").claims.facts == ()


class FixedBoxes:
    """An open-vocabulary model that proposes two boxes, the second with a score of 0.3."""

    def predict(self, image: Any, phrases: Sequence[str], config: DetectConfig) -> tuple[Tensor, Tensor]:
        corners = torch.tensor([[0.0, 0.0, 20.0, 20.0], [30.0, 0.0, 50.0, 20.0]])
        return torch.tensor([[0.9], [0.3]]).expand(2, len(phrases)), corners


def test_thresholds_of_a_config_file_reach_the_detector() -> None:
    detector = ZeroShotDetector(FixedBoxes(), "fixed", QUERIES)
    corrector = Corrector(None, detector, None, EngineSettings(), LoopSettings(), 3.0)  # type: ignore[arg-type]
    image, nouns = np.zeros((64, 64, 3), np.uint8), [Noun(None, "dog")]

    def detected() -> int:
        return len(NounDetector(corrector.detector, corrector.queries)(image, nouns).objects)

    assert detected() == 2
    corrector.use_queries(DetectConfig(QUERIES.query, 0.5))
    assert detected() == 1
