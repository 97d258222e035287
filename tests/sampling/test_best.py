"""Best of n, and traces of a sampling run."""

from __future__ import annotations

import pytest
import torch

from dpt.backbone import Backbone, open_backbone
from dpt.sampling.draw import Candidate, Request, SamplingSettings, best, draw, draw_latents, scored
from dpt.sampling.guidance import Trace
from dpt.sampling.options import Correction
from dpt.score.matching import Scorer
from tests import tiny_models
from tests.checkpoints.making import tiny_adapter
from tests.tiny_models import POCKET, PROMPT

REQUESTS = [Request(PROMPT, 3, index) for index in range(5)]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return open_backbone(tiny_models.save(POCKET, tmp_path_factory.mktemp("pocket") / "model"), device="cpu")


@pytest.fixture(scope="module")
def scorer(backbone: Backbone) -> Scorer:
    return Scorer(backbone, tiny_adapter(backbone))


def test_best_returns_the_highest_scores(backbone: Backbone, scorer: Scorer) -> None:
    settings = SamplingSettings(2)
    batches = list(draw_latents(backbone, REQUESTS, settings, batch_size=2, exact=False))
    candidates = list(scored(batches, scorer))
    by_hand = [float(scorer.clean_score(drawn.latents[[row]], drawn.text[[row]])) for drawn in batches
               for row in range(len(drawn.requests))]  # fmt: skip
    assert [candidate.score for candidate in candidates] == pytest.approx(by_hand, abs=1e-6)
    assert len(set(by_hand)) == 5
    selected = best(candidates, 2)
    assert [candidate.score for candidate in selected] == pytest.approx(sorted(by_hand, reverse=True)[:2], abs=1e-6)
    for candidate in selected:
        (alone,) = draw(backbone, [candidate.request], settings)
        torch.testing.assert_close(candidate.decode(backbone), alone, rtol=0, atol=1e-4)


def test_first_of_equal_scores_is_kept() -> None:
    nothing = torch.zeros(1, 4, 2, 2)
    candidates = [Candidate(request, nothing, score) for request, score in zip(REQUESTS, (1, 3, 3, 2, 3), strict=True)]
    assert [candidate.request.index for candidate in best(candidates, 3)] == [1, 2, 4]


def test_trace_records_the_corrected_input_and_changes_nothing(backbone: Backbone, scorer: Scorer) -> None:
    settings = SamplingSettings(4, scheduler="euler", correction=Correction(2, norm="unit"))
    traces: list[Trace] = []

    def watch(requests: object, text: object) -> Trace:
        traces.append(Trace(backbone, text, scorer, x0_pred_at=(0, 3)))  # type: ignore[arg-type]
        return traces[-1]

    (watched,) = draw_latents(backbone, REQUESTS[:1], settings, adapter=scorer.adapter, make_hook=watch)
    (alone,) = draw_latents(backbone, REQUESTS[:1], settings, adapter=scorer.adapter)
    assert torch.equal(watched.latents, alone.latents)
    (trace,) = traces
    assert [step.index for step in trace.steps] == [0, 1, 2, 3]
    assert all(step.scores is not None and -1 <= float(step.scores) <= 1 for step in trace.steps)
    predicted = [step.x0_pred for step in trace.steps]
    assert [x0_pred is not None for x0_pred in predicted] == [True, False, False, True]
    # Euler's last step goes all the way to its predicted x0.
    torch.testing.assert_close(predicted[3], watched.latents, rtol=0, atol=1e-3)
