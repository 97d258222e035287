"""What a step sees does not depend on how the work is dealt out, and every option does what it says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dpt.backbone.rng import SampleRNG
from dpt.distributed import Processes
from dpt.errors import UserError
from dpt.training.engine.logging import APPLIED
from dpt.training.engine.optim import Update
from dpt.training.engine.settings import BatchPlan, StepRange
from dpt.training.engine.task import matrices_decay
from tests.training.toy import Line, difference, loop, same, settings, tensors


def trained(root: Path, task: Line | None = None, **changes: Any) -> dict[str, torch.Tensor]:
    one = loop(root, task, **changes)
    one.run()
    return tensors(root, one.step)


def records(root: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize(("batch", "accumulation"), [(2, 2), (1, 4)])
def test_accumulation_changes_nothing_but_rounding(tmp_path: Path, batch: int, accumulation: int) -> None:
    """Means over samples and sums over boxes alike, though micro-batches differ in boxes; some have none."""
    whole = trained(tmp_path / "whole")
    split = trained(tmp_path / "split", train_batch_size=batch, gradient_accumulation_steps=accumulation)
    assert difference(whole, split) < 1e-6
    for one, other in zip(records(tmp_path / "whole"), records(tmp_path / "split"), strict=True):
        assert one["mean"] == pytest.approx(other["mean"], abs=1e-5)
        assert one["sum"] == pytest.approx(other["sum"], abs=1e-5)


def test_every_split_sees_the_same_samples() -> None:
    def seen(batch: int, accumulation: int, processes: int) -> list[list[int]]:
        plans = [BatchPlan(batch, accumulation, process, processes) for process in range(processes)]
        dealt = [list(StepRange(plan, 3, 5)) for plan in plans]
        return [
            sorted(
                position
                for one in dealt
                for micro in one[step * accumulation : (step + 1) * accumulation]
                for position in micro
            )
            for step in range(2)
        ]

    expected = [list(range(24, 32)), list(range(32, 40))]
    assert seen(8, 1, 1) == seen(2, 4, 1) == seen(2, 2, 2) == seen(1, 2, 4) == expected


def test_the_random_numbers_of_a_sample_are_its_own() -> None:
    together, alone = SampleRNG(5, range(10, 14)), SampleRNG(5, [12])
    assert torch.equal(together.normal((2, 3), "noise")[2], alone.normal((2, 3), "noise")[0])
    assert torch.equal(together.integers(1000, "timestep")[2], alone.integers(1000, "timestep")[0])
    assert not torch.equal(alone.normal((2, 3), "noise"), alone.normal((2, 3), "other"))
    assert not torch.equal(alone.normal((2, 3), "noise"), SampleRNG(6, [12]).normal((2, 3), "noise"))


def test_an_epoch_shows_every_example_once_and_goes_on(tmp_path: Path) -> None:
    task = Line()
    trained(tmp_path, task, max_train_steps=5)
    ids = [one for _, batch in task.seen for one in batch]
    assert len(set(ids[:10])) == len(set(ids[10:20])) == 10
    assert ids[:10] != ids[10:20]


def test_the_seed_decides(tmp_path: Path) -> None:
    a, b, c = (trained(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert same(a, b) and difference(a, c) > 0


def test_dropout_is_drawn_anew_at_each_step_and_the_same_each_time(tmp_path: Path) -> None:
    a, b = (trained(tmp_path / name, Line(dropout=0.5)) for name in "ab")
    torch.rand(7)
    assert same(a, b) and difference(a, trained(tmp_path / "c")) > 0


def gradient_of(task: Line, size: float) -> None:
    for p in task.trained.parameters():
        p.grad = torch.full_like(p, size)


def test_clipping_clips() -> None:
    task, fine = Line(), torch.tensor(False)
    update = Update(task.parameter_groups(), settings(max_grad_norm=0.5))
    gradient_of(task, 3.0)
    seen: list[float] = []
    update.adam.register_step_pre_hook(lambda *_: seen.append(_norm(task)))
    norm, status = update.apply(0, fine)
    count = sum(p.numel() for p in task.trained.parameters())
    assert float(norm) == pytest.approx(3 * math.sqrt(count)) and status == APPLIED
    assert seen == [pytest.approx(0.5, abs=1e-5)]


def test_no_clipping_at_zero() -> None:
    task = Line()
    update = Update(task.parameter_groups(), settings(max_grad_norm=0.0))
    gradient_of(task, 3.0)
    before, seen = _norm(task), list[float]()
    update.adam.register_step_pre_hook(lambda *_: seen.append(_norm(task)))
    update.apply(0, torch.tensor(False))
    assert seen == [pytest.approx(before)]


def _norm(task: Line) -> float:
    return float(torch.stack([p.grad.norm() for p in task.trained.parameters() if p.grad is not None]).norm())


def test_weight_decay_shrinks_matrices_without_gradient_and_leaves_biases() -> None:
    task = Line()
    before = {name: p.detach().clone() for name, p in task.trained.named_parameters()}
    update = Update(task.parameter_groups(), settings(adam_weight_decay=0.25, learning_rate=0.1))
    update.average_gradients(Processes())  # a parameter without gradient counts as zero
    update.apply(0, torch.tensor(False))
    for name, p in task.trained.named_parameters():
        kept = 1.0 if name.endswith("bias") else 1 - 0.1 * 0.25
        assert torch.allclose(p, before[name] * kept), name


def test_the_learning_rate_warms_up_and_ends_where_it_says(tmp_path: Path) -> None:
    for accumulation, batch in ((1, 4), (4, 1)):
        root = tmp_path / str(accumulation)
        trained(
            root,
            lr_scheduler="linear",
            lr_warmup_steps=4,
            logging_steps=1,
            train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        rates = [one["lr"] for one in records(root)]
        assert rates[:5] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01])
        assert rates[-1] == pytest.approx(0.01 / 8)


def test_betas_and_epsilon_reach_the_optimizer() -> None:
    group = Update(
        Line().parameter_groups(), settings(adam_beta1=0.5, adam_beta2=0.6, adam_epsilon=0.1)
    ).adam.param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.5, 0.6), 0.1)


def test_a_step_that_is_not_finite_is_not_applied(tmp_path: Path) -> None:
    """Also if one of its micro-batches is fine; and the moments do not see it either."""
    one = loop(tmp_path, Line(bad=range(9, 10)), train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1)
    taken: list[dict[str, torch.Tensor]] = []
    ordinary = one.take_step

    def take_step(micro_batches: Any) -> None:
        ordinary(micro_batches)
        taken.append(
            {
                f"{group}/{name}": value.clone()
                for group, content in one.update.tensors().items()
                for name, value in content.items()
            }
        )

    one.take_step = take_step  # type: ignore[method-assign]
    one.run()
    assert same(taken[1], taken[2]) and not same(taken[2], taken[3])
    assert [record["bad_steps"] for record in _train_records(tmp_path)] == [0, 0, 1, *[0] * 9]
    assert all(math.isfinite(value) for record in records(tmp_path) for value in record.values())


def _train_records(root: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "bad_steps" in line]


def test_several_in_a_row_end_the_run_and_name_their_examples(tmp_path: Path) -> None:
    task = Line(bad=range(16, 28))
    sentence = r"not finite in 3 steps in a row, up to step 7.*\"5\": \[\"example \d\""
    with pytest.raises(UserError, match=sentence) as said:
        loop(tmp_path, task).run()
    ids = [one for positions, batch in task.seen if positions[0] in range(16, 28) for one in batch]
    assert all(one in str(said.value) for one in ids)
    loop(tmp_path / "patient", Line(bad=range(16, 28)), max_bad_steps=4).run()


def test_bad_steps_are_counted_over_readings_and_resumes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 steps in a row, up to step 5"):
        loop(tmp_path, Line(bad=range(8, 20)), checkpointing_steps=4).run()
    with pytest.raises(UserError, match="3 steps in a row, up to step 5"):
        loop(tmp_path, Line(bad=range(8, 20)), checkpointing_steps=4).run()


def test_what_is_known_before_the_first_step_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, train_batch_size=2, gradient_accumulation_steps=3)
    said = capsys.readouterr().out
    assert "effective batch: 6 = 2 examples x 3 accumulated x 1 process\n" in said
    assert "trainable parameters: 19\n" in said
    assert "estimated memory per device" in said


def test_validation_comes_when_it_should_and_is_logged(tmp_path: Path) -> None:
    trained(tmp_path, validation_steps=5)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [5, 10, 12]
    assert lines[-1]["validation"].keys() == {"positive"}
    trained(tmp_path / "never", validation_steps=0)
    assert "validation" not in (tmp_path / "never" / "log.jsonl").read_text()


def test_the_host_does_not_wait_for_the_device_within_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = loop(tmp_path)
    micro_batches = next(one._micro_batches())
    for name in ("item", "tolist", "cpu", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"{name} waits for the device"))
    one.take_step(micro_batches)


def test_half_precision_is_not_trained() -> None:
    with pytest.raises(UserError, match=r"must be float32, not torch\.float16"):
        Update(matrices_decay(Line().trained.half()), settings())


def test_nothing_to_train_is_said() -> None:
    with pytest.raises(UserError, match="every parameter is frozen"):
        Update(matrices_decay(Line().trained.requires_grad_(False)), settings())


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_train_steps", 0), ("train_batch_size", 0), ("learning_rate", 0.0), ("lr_warmup_steps", -1),
     ("adam_beta1", 1.0), ("checkpoints_total_limit", 0), ("max_grad_norm", -1.0), ("learning_rate", float("nan")),
     ("lr_scheduler", "sawtooth")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{name}"):
        settings(**{name: value})


def test_weights_that_name_no_loss_are_an_error_that_lists_the_losses(tmp_path: Path) -> None:
    run = loop(tmp_path)
    run.task.weights = {"other": 1.0}
    with pytest.raises(ValueError, match="weights name none of its losses, mean, sum"):
        run.run()
