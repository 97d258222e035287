"""Probe questions on adapters with known answers."""

from __future__ import annotations

import pytest
import torch

from dpt.adapter import Adapter, GroundingOutput, config_for
from dpt.backbone import Backbone, open_backbone
from dpt.data.example import ExpressionBatch
from dpt.data.images import Framing
from dpt.data.scenes.captions import NEGATIVE_TYPES
from dpt.data.scenes.referring import KINDS
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import POCKET_WORLD
from dpt.data.stream import Stream
from dpt.probes.probe import (
    IMAGE,
    KIND,
    MATCHING,
    REC,
    TEXT,
    Probe,
    ProbeAnswer,
    ProbeResult,
    accuracy,
    categories,
    count_answers,
    ranks,
    report,
    timesteps,
)
from tests import tiny_models

TIMES = (20, 700)
SMALL = {"hidden_dim": 16, "nheads": 2, "dim_feedforward": 32, "num_queries_matching": 3, "num_queries_rec": 5}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return open_backbone(tiny_models.save(tiny_models.POCKET, tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def probe(backbone: Backbone) -> Probe:
    torch.manual_seed(0)
    width = backbone.text_width
    adapter = Adapter(config_for(backbone, "up0", width, text_encoder_type="backbone", **SMALL))
    source = SceneSource(POCKET_WORLD, 0, "test", Framing(64), 10)
    return Probe(backbone, adapter.eval(), {"scenes": Stream(source, 0, shuffle=False)}, TIMES, batch_size=4)


def test_every_question_is_answered_once_at_each_timestep(probe: Probe) -> None:
    answers = list(probe.answers())
    for question in (TEXT, IMAGE, REC, KIND):
        for t in TIMES:
            assert sum((answer.question, answer.timestep) == (question, t) for answer in answers) == 10
    assert {answer.category for answer in answers if answer.question in (TEXT, IMAGE)} <= set(NEGATIVE_TYPES)
    assert {answer.category for answer in answers if answer.question == KIND} <= set(KINDS)
    assert [a.rank for a in answers if a.question == KIND] == [a.rank for a in answers if a.question == REC]
    assert {answer.category for answer in answers if answer.question == REC} == {"scenes"}


def test_answer_does_not_depend_on_the_other_timesteps(probe: Probe) -> None:
    alone = Probe(probe.backbone, probe.adapter, probe.streams, (700,), batch_size=4)
    assert list(alone.answers()) == [answer for answer in probe.answers() if answer.timestep == 700]


def test_two_processes_give_the_tally_of_one(probe: Probe) -> None:
    parts = [probe.tally(part, 2) for part in range(2)]
    whole = probe.tally()
    assert whole == {name: tuple(map(sum, zip(parts[0][name], parts[1][name], strict=True))) for name in whole}
    assert whole["itm_overall"][1] == 2 * 10 * len(TIMES)


def grounding(boxes: list[list[float]], none: list[float]) -> GroundingOutput:
    logits = torch.zeros(1, len(boxes), 4)
    logits[0, :, -1] = torch.tensor(none)
    return GroundingOutput(logits, torch.tensor([boxes]), None)


def expression(boxes: list[list[float]]) -> ExpressionBatch:
    return ExpressionBatch(["x"], torch.tensor(boxes).reshape(-1, 4), [len(boxes)], [[((0, 1),)] * len(boxes)])


A, B = [0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]


@pytest.mark.parametrize(
    ("boxes", "none", "target", "rank"),
    [
        ([A, B], [0.0, 1.0], [A], 0),
        ([A, B], [1.0, 0.0], [A], 1),
        ([B, B, A], [0.0, 1.0, 2.0], [A], 2),
        ([A, B], [1.0, 0.0], [A, B], 0),
        ([B, B], [0.0, 1.0], [A], None),
        ([[0.3, 0.35, 0.2, 0.2], B], [0.0, 1.0], [A], 0),  # IoU 0.6
        ([[0.3, 0.40, 0.2, 0.2], B], [0.0, 1.0], [A], None),  # IoU 0.33
    ],
)
def test_rank_of_the_first_correct_box(
    boxes: list[list[float]], none: list[float], target: list[list[float]], rank: int | None
) -> None:
    assert ranks(grounding(boxes, none), expression(target)) == [rank]


def test_grounding_is_reported_by_the_kind_of_expression_where_that_is_known() -> None:
    cells = count_answers([ProbeAnswer(KIND, "relation", 20, 0), ProbeAnswer(KIND, "relation", 20, 1)])
    known = ProbeResult("up0", "", (*cells, *count_answers([ProbeAnswer(REC, "scenes", 20, 0)])))
    assert "by kind of expression, P@1, at timestep 20\n\n| feature | relation |" in report([known], 20)
    assert "kind of expression" not in report([ProbeResult("up0", "", known.cells[1:])], 20)


def test_expression_without_boxes_is_not_scored() -> None:
    assert ranks(grounding([A], [0.0]), expression([])) == []


def test_answers_are_counted_by_k_type_and_timestep() -> None:
    answers = [
        ProbeAnswer(TEXT, "colour", 20, 0),
        ProbeAnswer(TEXT, "colour", 20, 1),
        ProbeAnswer(IMAGE, "count", 20, 0),
        ProbeAnswer(IMAGE, "count", 500, 1),
        ProbeAnswer(REC, "scenes", 20, 0),
        ProbeAnswer(REC, "scenes", 20, 3),
        ProbeAnswer(REC, "scenes", 20, 7),
        ProbeAnswer(REC, "scenes", 20, None),
    ]
    cells = count_answers(answers)
    assert timesteps(cells) == [20, 500] and set(categories(cells)) == {"colour", "count"}
    assert (accuracy(cells, MATCHING).hits, accuracy(cells, MATCHING).total) == (2, 4)
    assert (accuracy(cells, (TEXT,), "colour", 20).hits, accuracy(cells, (IMAGE,), timestep=500).hits) == (1, 0)
    assert [accuracy(cells, (REC,), k=k).hits for k in (1, 5, 10)] == [1, 2, 3]
    assert str(accuracy(cells, (REC,), timestep=500)) == "-"
