"""Parameter groups, the moving average and loss scaling: their effect, and that they resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpt.backbone.rng import SampleRNG
from dpt.data.example import Batch
from dpt.training.engine import run_folder
from dpt.training.engine.optim import ExponentialMovingAverage, LossScaler, Update
from dpt.training.engine.task import ParameterGroup, all_decay, matrices_decay, with_own_rate
from tests.training.toy import Line, loop, same, settings, tensors

FINE, BAD = torch.tensor(False), torch.tensor(True)


def test_biases_norms_embeddings_and_scalars_do_not_decay() -> None:
    module = nn.ModuleDict({"linear": nn.Linear(3, 2), "norm": nn.LayerNorm(3), "embedding": nn.Embedding(4, 3)})
    module.register_parameter("logit_scale", nn.Parameter(torch.tensor(1.0)))
    module["norm"].bias.requires_grad_(False)
    decaying, others = matrices_decay(module)
    assert decaying.decays and set(decaying.named) == {"linear.weight"}
    assert not others.decays
    assert set(others.named) == {"linear.bias", "norm.weight", "embedding.weight", "logit_scale"}
    (everything,) = all_decay(module)
    assert everything.decays and everything.named.keys() == {*decaying.named, *others.named}


def test_text_encoder_has_its_own_learning_rate() -> None:
    module = nn.ModuleDict({"text_encoder": nn.Linear(2, 2, bias=False), "head": nn.Linear(2, 2, bias=False)})
    groups = with_own_rate(all_decay(module), "text_encoder", 1e-3)
    update = Update(groups, settings(learning_rate=0.1, lr_scheduler="linear", adam_weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    update.apply(6, FINE)
    moved = {name: float((before[name] - p.detach()).max()) for name, p in module.named_parameters()}
    assert moved == {"head.weight": pytest.approx(0.05, rel=1e-3), "text_encoder.weight": pytest.approx(5e-4, rel=1e-3)}


def test_moving_average_warms_up_and_skips_bad_steps() -> None:
    p = nn.Parameter(torch.zeros(1))
    average = ExponentialMovingAverage({"p": p}, decay=0.75)
    p.data.fill_(10.0)
    average.update(0, FINE)
    assert float(average.tensors["p"]) == pytest.approx(9.0), "1 / 10 of the first weights are left"
    average.update(1, BAD)
    assert float(average.tensors["p"]) == pytest.approx(9.0)
    p.data.fill_(13.0)
    average.update(1000, FINE)
    assert float(average.tensors["p"]) == pytest.approx(10.0), "0.75 * 9 + 0.25 * 13"
    with average.swapped_in():
        assert float(p.detach()) == pytest.approx(10.0)
    assert float(p.detach()) == 13.0


def test_moving_average_of_a_short_run_forgets_the_initial_weights(tmp_path: Path) -> None:
    """At a constant decay of 0.999, 98.8 % of the average after 12 steps would be the initial weights."""
    start = {f"weights/{name}": p.detach().clone() for name, p in Line().trained.named_parameters()}
    loop(tmp_path, ema_decay=0.999).run()
    saved = tensors(tmp_path)
    for name, first in start.items():
        last, average = saved[name], saved[name.replace("weights", "average")]
        assert (average - last).norm() < 0.6 * (first - last).norm(), name


def test_moving_average_does_not_change_training(tmp_path: Path) -> None:
    loop(tmp_path / "without", Line()).run()
    loop(tmp_path / "with", Line(), ema_decay=0.9).run()
    without_average, with_average = tensors(tmp_path / "without"), tensors(tmp_path / "with")
    assert all(
        torch.equal(with_average[name], value)
        for name, value in without_average.items()
        if not name.startswith("meters")
    )
    assert sum(name.startswith("average/") for name in with_average) == 4


@pytest.mark.parametrize("stop", [3, 8])
def test_moving_average_resumes_bit_for_bit(tmp_path: Path, stop: int) -> None:
    loop(tmp_path / "whole", ema_decay=0.9).run()
    loop(tmp_path / "cut", ema_decay=0.9, max_train_steps=stop).run()
    loop(tmp_path / "cut", ema_decay=0.9).run()
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "cut"))


class ThroughHalf(torch.autograd.Function):
    """Rounds gradients to float16, like a frozen float16 model."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.half().float()


class HalfLine(Line):
    scales_loss = True
    shrink = 1e-8
    """Small gradients, like those of real losses, which are means over many pixels."""

    def losses(self, batch: Batch, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
        x = batch.images.flatten(1) + 0.1 * rng.normal((4,), "noise")
        y = ThroughHalf.apply(self.trained(x)[:, 0])  # type: ignore[no-untyped-call]
        error = (y - x.sum(dim=1)) ** 2
        return {"mean": self.shrink * error.mean(), "sum": torch.zeros(())}


def gradients(task: Line, scaler: LossScaler | None) -> Tensor:
    update = Update(task.parameter_groups(), settings(), scaler)
    running = loop(Path("unused"), task)
    batch = next(running._micro_batches())[0]
    losses = task.losses(batch, SampleRNG(1, range(len(batch))), torch.tensor(1.0))
    update.backward(losses["mean"])
    if scaler is not None:
        scaler.unscale([p.grad for p in update.parameters if p.grad is not None])
    return torch.cat([p.grad.flatten() for p in update.parameters if p.grad is not None])


def test_small_gradients_survive_float16_by_loss_scaling() -> None:
    exact_task = HalfLine()
    exact_task.shrink = 1.0
    exact = gradients(exact_task, None) * 1e-8
    scaled, unscaled = gradients(HalfLine(), LossScaler("cpu")), gradients(HalfLine(), None)
    assert torch.cosine_similarity(scaled, exact, dim=0) > 0.9999
    assert torch.allclose(scaled, exact, rtol=1e-2, atol=1e-11)
    assert torch.cosine_similarity(unscaled, exact, dim=0) < 0.99


def test_overflow_halves_the_scale_and_is_not_a_bad_step(tmp_path: Path) -> None:
    class Large(HalfLine):
        shrink = 1000.0  # times 2^14 this is beyond float16

    running = loop(tmp_path, Large(), logging_steps=1)
    running.run()
    _, state = run_folder.load(tmp_path / "checkpoint-12")
    scale = float(tensors(tmp_path)["loss_scale/scale"])
    assert 1 < scale < LossScaler.INITIAL
    from tests.training.test_loop import _train_records

    records = _train_records(tmp_path)
    overflowed = [record["overflowed_steps"] for record in records]
    assert sum(overflowed) > 3, "more than --max_bad_steps in a row"
    assert [record["bad_steps"] for record in records] == [0] * 12 and state["bad_in_a_row"] == 0
    assert all("loss" not in record for record, skipped in zip(records, overflowed, strict=True) if skipped)


def test_scale_grows_after_enough_applied_steps_and_stays_in_bounds() -> None:
    scaler, finite, infinite = LossScaler("cpu", growth_interval=2), torch.tensor(1.0), torch.tensor(float("inf"))
    scaler.update(finite, FINE)
    scaler.update(infinite, BAD)
    assert float(scaler.scale) == 2.0**14, "a bad loss says nothing of the scale"
    scaler.update(finite, FINE)
    scaler.update(finite, FINE)
    assert float(scaler.scale) == 2.0**15
    assert all(bool(scaler.update(infinite, FINE)) for _ in range(15)) and float(scaler.scale) == 1
    assert not scaler.update(infinite, FINE), "at a scale of 1 it is a bad step"
    assert float(scaler.scale) == 1


def test_scale_resumes_bit_for_bit(tmp_path: Path) -> None:
    loop(tmp_path / "whole", HalfLine()).run()
    loop(tmp_path / "cut", HalfLine(), max_train_steps=5).run()
    loop(tmp_path / "cut", HalfLine()).run()
    whole: Mapping[str, Tensor] = tensors(tmp_path / "whole")
    assert same(whole, tensors(tmp_path / "cut")) and "loss_scale/scale" in whole


def test_parameter_groups_do_not_change_the_update() -> None:
    """Split in two with the same settings, every parameter moves as in one group."""
    results = []
    for split in (False, True):
        task = Line()
        (whole,) = all_decay(task.trained)
        named = list(whole.named.items())
        groups = [ParameterGroup(dict(named[:1])), ParameterGroup(dict(named[1:]))] if split else [whole]
        update = Update(groups, settings())
        for p in task.trained.parameters():
            p.grad = torch.full_like(p, 0.3)
        update.apply(0, FINE)
        results.append([p.detach().clone() for p in task.trained.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
