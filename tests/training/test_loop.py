"""A step does not depend on how its batch is split, and every option has its documented effect."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tqdm import tqdm

from dpt.backbone.rng import SampleRNG
from dpt.distributed import Processes
from dpt.errors import UserError
from dpt.training.engine.logging import APPLIED
from dpt.training.engine.optim import Update
from dpt.training.engine.settings import BatchPlan, StepRange
from dpt.training.engine.task import matrices_decay
from tests.training.toy import Line, difference, loop, same, settings, tensors


def trained(root: Path, task: Line | None = None, **changes: Any) -> dict[str, torch.Tensor]:
    run = loop(root, task, **changes)
    run.run()
    return tensors(root, run.step)


def records(root: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize(("batch", "accumulation"), [(2, 2), (1, 4)])
def test_accumulation_changes_only_rounding(tmp_path: Path, batch: int, accumulation: int) -> None:
    """For means over samples and sums over boxes, although micro-batches differ in boxes and some have none."""
    whole = trained(tmp_path / "whole")
    split = trained(tmp_path / "split", train_batch_size=batch, gradient_accumulation_steps=accumulation)
    assert difference(whole, split) < 1e-6
    for record, split_record in zip(records(tmp_path / "whole"), records(tmp_path / "split"), strict=True):
        assert record["mean"] == pytest.approx(split_record["mean"], abs=1e-5)
        assert record["sum"] == pytest.approx(split_record["sum"], abs=1e-5)


def test_every_batch_plan_covers_the_same_samples() -> None:
    def seen(batch: int, accumulation: int, processes: int) -> list[list[int]]:
        plans = [BatchPlan(batch, accumulation, process, processes) for process in range(processes)]
        positions_by_process = [list(StepRange(plan, 3, 5)) for plan in plans]
        return [
            sorted(
                position
                for positions_of_process in positions_by_process
                for micro in positions_of_process[step * accumulation : (step + 1) * accumulation]
                for position in micro
            )
            for step in range(2)
        ]

    expected = [list(range(24, 32)), list(range(32, 40))]
    assert seen(8, 1, 1) == seen(2, 4, 1) == seen(2, 2, 2) == seen(1, 2, 4) == expected


def test_random_numbers_depend_only_on_seed_and_position() -> None:
    together, alone = SampleRNG(5, range(10, 14)), SampleRNG(5, [12])
    assert torch.equal(together.normal((2, 3), "noise")[2], alone.normal((2, 3), "noise")[0])
    assert torch.equal(together.integers(1000, "timestep")[2], alone.integers(1000, "timestep")[0])
    assert not torch.equal(alone.normal((2, 3), "noise"), alone.normal((2, 3), "other"))
    assert not torch.equal(alone.normal((2, 3), "noise"), SampleRNG(6, [12]).normal((2, 3), "noise"))


def test_each_epoch_covers_every_example_once(tmp_path: Path) -> None:
    task = Line()
    trained(tmp_path, task, max_train_steps=5)
    ids = [example_id for _, batch in task.seen for example_id in batch]
    assert len(set(ids[:10])) == len(set(ids[10:20])) == 10
    assert ids[:10] != ids[10:20]


def test_seed_determines_the_weights(tmp_path: Path) -> None:
    a, b, c = (trained(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert same(a, b) and difference(a, c) > 0


def test_dropout_masks_are_reproducible(tmp_path: Path) -> None:
    a, b = (trained(tmp_path / name, Line(dropout=0.5)) for name in "ab")
    torch.rand(7)
    assert same(a, b) and difference(a, trained(tmp_path / "c")) > 0


def gradient_of(task: Line, size: float) -> None:
    for p in task.trained.parameters():
        p.grad = torch.full_like(p, size)


def test_gradient_norm_is_clipped() -> None:
    task, fine = Line(), torch.tensor(False)
    update = Update(task.parameter_groups(), settings(max_grad_norm=0.5))
    gradient_of(task, 3.0)
    seen: list[float] = []
    update.adam.register_step_pre_hook(lambda *_: seen.append(_norm(task)))
    norm, status = update.apply(0, fine)
    count = sum(p.numel() for p in task.trained.parameters())
    assert float(norm) == pytest.approx(3 * math.sqrt(count)) and status == APPLIED
    assert seen == [pytest.approx(0.5, abs=1e-5)]


def test_max_grad_norm_zero_does_not_clip() -> None:
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
        factor = 1.0 if name.endswith("bias") else 1 - 0.1 * 0.25
        assert torch.allclose(p, before[name] * factor), name


def test_learning_rate_follows_warmup_and_linear_decay(tmp_path: Path) -> None:
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
        rates = [record["lr"] for record in records(root)]
        assert rates[:5] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01])
        assert rates[-1] == pytest.approx(0.01 / 8)


def test_betas_and_epsilon_are_passed_to_the_optimizer() -> None:
    group = Update(
        Line().parameter_groups(), settings(adam_beta1=0.5, adam_beta2=0.6, adam_epsilon=0.1)
    ).adam.param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.5, 0.6), 0.1)


def test_non_finite_step_is_not_applied(tmp_path: Path) -> None:
    """Neither weights nor moments change, even if one of its micro-batches is finite."""
    run = loop(tmp_path, Line(bad=range(9, 10)), train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1)
    states: list[dict[str, torch.Tensor]] = []
    take_step_before = run.take_step

    def take_step(micro_batches: Any) -> None:
        take_step_before(micro_batches)
        states.append(
            {
                f"{group}/{name}": value.clone()
                for group, content in run.update.tensors().items()
                for name, value in content.items()
            }
        )

    run.take_step = take_step  # type: ignore[method-assign]
    run.run()
    assert same(states[1], states[2]) and not same(states[2], states[3])
    assert [record["bad_steps"] for record in _train_records(tmp_path)] == [0, 0, 1, *[0] * 9]
    assert all(math.isfinite(value) for record in records(tmp_path) for value in record.values())


def _train_records(root: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "bad_steps" in line]


def test_consecutive_non_finite_steps_end_the_run_and_name_their_examples(tmp_path: Path) -> None:
    task = Line(bad=range(16, 28))
    sentence = r"not finite in 3 steps in a row, up to step 7.*\"5\": \[\"example \d\""
    with pytest.raises(UserError, match=sentence) as error:
        loop(tmp_path, task).run()
    ids = [example_id for positions, batch in task.seen if positions[0] in range(16, 28) for example_id in batch]
    assert all(example_id in str(error.value) for example_id in ids)
    loop(tmp_path / "patient", Line(bad=range(16, 28)), max_bad_steps=4).run()


def test_bad_step_count_survives_logging_and_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 steps in a row, up to step 5"):
        loop(tmp_path, Line(bad=range(8, 20)), checkpointing_steps=4).run()
    with pytest.raises(UserError, match="3 steps in a row, up to step 5"):
        loop(tmp_path, Line(bad=range(8, 20)), checkpointing_steps=4).run()


def test_run_prints_effective_batch_parameters_and_memory_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, train_batch_size=2, gradient_accumulation_steps=3)
    printed = capsys.readouterr().out
    assert "effective batch: 6 = 2 examples x 3 accumulated x 1 process\n" in printed
    assert "trainable parameters: 19\n" in printed
    assert "estimated memory per device" in printed


def test_validation_runs_on_schedule_and_is_logged(tmp_path: Path) -> None:
    trained(tmp_path, validation_steps=5)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [5, 10, 12]
    assert lines[-1]["validation"].keys() == {"positive"}
    trained(tmp_path / "never", validation_steps=0)
    assert "validation" not in (tmp_path / "never" / "log.jsonl").read_text()


class ReadsTen(Line):
    num_validation_examples = 10

    def validate(self, part: int, parts: int, on_batch: Any) -> Any:
        for examples in (4, 4, 2):
            on_batch(examples)
        return super().validate(part, parts, lambda n: None)


@pytest.mark.parametrize(
    ("steps", "validation_steps", "validated"),
    [(2, None, []), (3, None, [3]), (2, 1, [1, 2])],
    ids=["trains on 8 and would read 10", "trains on 12", "on request"],
)
def test_run_shorter_than_a_validation_is_validated_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int, validation_steps: int | None, validated: list[int]
) -> None:
    trained(tmp_path, ReadsTen(), max_train_steps=steps, validation_steps=validation_steps)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == validated
    sentence = "no validation: this run trains on 8 examples and a validation reads 10; give --validation_steps"
    assert (sentence in capsys.readouterr().out) == (not validated)


def test_validation_has_a_progress_bar_and_a_clock_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(0, 100_000, 1000))
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))
    monkeypatch.setattr("dpt.training.engine.loop.time", clock)
    bars: list[tuple[int, int]] = []

    class Bar(tqdm):  # type: ignore[type-arg]
        def close(self) -> None:
            if not self.disable and self.desc == "validation":
                bars.append((self.n, self.total))
            super().close()

    monkeypatch.setattr("dpt.training.engine.validation.tqdm", Bar)
    run = loop(tmp_path, ReadsTen(), max_train_steps=6, validation_steps=3, checkpointing_steps=6)
    started: list[float] = []
    monkeypatch.setattr(type(run.log), "clock", lambda log: started.append(log.started) or {})
    run.run()
    assert bars == [(10, 10), (10, 10)], "one bar per validation, up to its last example"
    first, second = started
    assert second - first == 1000, "the training clock stands still while the first validation runs"
    printed = capsys.readouterr()
    assert "step 3: positive 1.000 (validated in 1000 s)" in printed.out + printed.err


def test_step_does_not_synchronise_with_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = loop(tmp_path)
    micro_batches = next(run._micro_batches())
    for name in ("item", "tolist", "cpu", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"{name} waits for the device"))
    run.take_step(micro_batches)


def test_half_precision_weights_are_refused() -> None:
    with pytest.raises(UserError, match=r"must be float32, not torch\.float16"):
        Update(matrices_decay(Line().trained.half()), settings())


def test_frozen_model_is_refused() -> None:
    with pytest.raises(UserError, match="every parameter is frozen"):
        Update(matrices_decay(Line().trained.requires_grad_(False)), settings())


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_train_steps", 0), ("train_batch_size", 0), ("learning_rate", 0.0), ("lr_warmup_steps", -1),
     ("adam_beta1", 1.0), ("checkpoints_total_limit", 0), ("max_grad_norm", -1.0), ("learning_rate", float("nan")),
     ("lr_scheduler", "sawtooth")],
)  # fmt: skip
def test_invalid_settings_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{name}"):
        settings(**{name: value})


def test_loss_weights_without_matching_loss_list_the_losses(tmp_path: Path) -> None:
    run = loop(tmp_path)
    run.task.weights = {"other": 1.0}
    with pytest.raises(ValueError, match="weights name none of its losses, mean, sum"):
        run.run()
