"""What watches a run: it changes nothing that is trained, keeps the best result, and can end the run."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from dpt.errors import UserError
from dpt.training.engine.observers import BestResult, RunObserver, TimeEstimate, duration
from dpt.training.engine.task import OnBatch, Tally
from tests.training.toy import Line, loop, same, tensors

VALUES = {2: 0.3, 4: 0.7, 6: 0.7, 8: 0.5, 10: 0.6, 12: 0.9}
"""The metric after each validated step."""


class Scripted(Line):
    """Validates to VALUES, and draws random numbers while it does."""

    run: Any = None

    def validate(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        torch.manual_seed(99)
        torch.randn(7)
        on_batch(1)
        return {"accuracy": (VALUES[self.run.step], 1.0), "mse": (1 - VALUES[self.run.step], 1.0)}

    def export(self, root: Path, base: str = "") -> list[Path]:
        (root / "line").mkdir(parents=True)
        torch.save(self.trained.state_dict(), root / "line" / "weights.pt")
        return [root / "line"]


def watched(root: Path, metric: str | None, patience: int | None = None, **changes: Any) -> Any:
    task = Scripted(dropout=0.5)
    run = task.run = loop(root, task, validation_steps=2, **changes)
    if metric is not None:
        run.observer = BestResult(root, metric, task.export, patience)
    return run


def best(root: Path) -> Any:
    return json.loads((root / "best" / "best.json").read_text())


@pytest.mark.parametrize("metric", ["accuracy", "mse"])
def test_the_best_result_is_kept_and_validating_changes_no_bit(metric: str, tmp_path: Path) -> None:
    plain = loop(tmp_path / "plain", Line(dropout=0.5), validation_steps=0)
    plain.run()
    run = watched(tmp_path / "kept", metric)
    assert run.run().finished
    assert same(tensors(tmp_path / "plain", 12), tensors(tmp_path / "kept", 12))
    assert best(tmp_path / "kept") == {
        "step": 12,
        "metric": metric,
        "value": pytest.approx(VALUES[12] if metric == "accuracy" else 0.1),
    }
    assert f"best {metric}: " in run.observer.describe()
    stopped = watched(tmp_path / "short", metric, max_train_steps=10)
    stopped.run()
    assert best(tmp_path / "short")["step"] == 4, "of equal values the first"
    weights = torch.load(tmp_path / "short/best/line/weights.pt", weights_only=True)
    four = watched(tmp_path / "four", None, max_train_steps=4)
    four.run()
    assert all(torch.equal(weights[name], value) for name, value in four.task.trained.state_dict().items())


def test_a_run_ends_early_and_a_resumed_one_decides_the_same(tmp_path: Path) -> None:
    run = watched(tmp_path / "whole", "accuracy", patience=2)
    outcome = run.run()
    assert (outcome.step, outcome.finished) == (
        8,
        True,
    ) and "did not improve in 2 validations" in run.observer.describe()
    again = watched(tmp_path / "whole", "accuracy", patience=2)
    assert again.run().step == 8 and best(tmp_path / "whole")["step"] == 4
    patient = watched(tmp_path / "whole", "accuracy", patience=5)
    assert patient.run().step == 12 and best(tmp_path / "whole")["step"] == 12
    first = watched(tmp_path / "parts", "accuracy", patience=2)
    first.run(until=0.0)
    assert first.step < 8
    while not (resumed := watched(tmp_path / "parts", "accuracy", patience=2)).run().finished:
        pass
    assert resumed.step == 8 and same(tensors(tmp_path / "parts", 8), tensors(tmp_path / "whole", 8))


def test_an_unknown_metric_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--keep_best itm: this run's validation has accuracy, mse"):
        watched(tmp_path, "itm").run()


def test_the_time_is_estimated_from_the_first_steps(capsys: pytest.CaptureFixture[str]) -> None:
    def said(each: float, total: int) -> str:
        """What a run says that continues after step 50, whose steps take so many seconds."""
        now = iter(count(100, each))
        estimate = TimeEstimate(total, lambda: "1.1 GiB", lambda: next(now))
        estimate.started(50)
        for step in range(51, min(total + 1, 70)):
            estimate.after_step(step)
        return capsys.readouterr().out

    end = "validations and samples come on top)\n"
    assert said(2.0, 1000) == f"about 32 minutes for 946 more steps, 1.1 GiB (measured on steps 52 to 54; {end}"
    assert said(20.0, 163) == f"about 37 minutes for 111 more steps, 1.1 GiB (measured on step 52; {end}", "sooner"
    assert said(0.1, 100) == said(100.0, 52) == said(100.0, 51) == "", "the bar shows it"
    seconds = (0.2, 40, 61, 3600, 3660 * 3)
    assert [*map(duration, seconds)] == ["1 second", "40 seconds", "1 minute", "1 hour", "3 hours 3 minutes"]
    RunObserver().after_step(1)
