"""Stage 2 and its control on a tiny model: what they compute and train, and that none of it changes unnoticed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dpt.adapter.io.native import load_adapter
from dpt.backbone import Backbone, open_backbone
from dpt.backbone.rng import SampleRNG
from dpt.backbone.unet_features import block_of
from dpt.data.example import Batch, collate
from dpt.data.pairs import TRUE
from dpt.errors import UserError
from dpt.lora import LoraConfig
from dpt.lora.io import attach_lora, read_lora
from dpt.training.engine import checkpoint
from dpt.training.engine.task import Task
from dpt.training.tasks.denoising import DENOISED, DenoisingConfig, NoiseConfig, add_noise_to_batch
from dpt.training.tasks.discriminative import ObjectiveConfig
from dpt.training.tasks.stage2 import Stage2
from tests.training import tiny_stage1, two_processes
from tests.training.tiny_stage1 import stream
from tests.training.tiny_stage2 import FEATURE, control, loop, task

ROOT = Path(__file__).parents[2]
SIX = {"i2t", "t2i", "ce", "bbox", "giou", "align"}
NOTHING = ObjectiveConfig(dict.fromkeys(ObjectiveConfig().weights, 0.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def opened(folder: Path) -> Backbone:
    return open_backbone(folder, device="cpu")


@pytest.fixture
def backbone(opened: Backbone) -> Iterator[Backbone]:
    """The same for all tests: each takes away what it put in."""
    yield opened
    opened.unet.disable_gradient_checkpointing()
    opened.unet.unload_lora()
    if hasattr(opened.unet, "peft_config"):
        del opened.unet.peft_config
    opened.unet._hf_peft_config_loaded = False


@pytest.fixture(scope="module")
def batch() -> Batch:
    return collate([stream()[position] for position in range(3)])


def stirred(one: Any) -> Any:
    """With a LoRA that does something."""
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in one.lora.weights.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=chance))
    return one


def losses_of(one: Any, batch: Batch) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = one.losses(batch, SampleRNG(1, range(len(batch))), torch.tensor(3.0))
    return found


def reached(one: Any, loss: torch.Tensor) -> set[str | None]:
    """The blocks whose LoRA a loss sends a gradient to."""
    for p in one.trained.parameters():
        p.grad = None
    loss.backward()
    moved = [name for name, p in one.lora.weights.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    return {block_of(name.rsplit(".", 2)[0]) for name in moved}


TO_THE_FEATURE = {"bottom0", "bottom1", "mid", "up1"}
TASKS = {"stage2": task, "plain_lora": control}


@pytest.mark.parametrize("name", TASKS)
def test_the_golden_trace(tmp_path: Path, backbone: Backbone, name: str) -> None:
    """As that of stage 1. To write it anew: DPT_WRITE_TRACE=1 pytest tests/training/test_stage2.py -k golden

    The seed is one without near-ties on the way: which of two queries is the better one by the last digit hangs on the
    CPU, and the loss tells the same of both while its gradient does not.
    """
    loop(tmp_path, TASKS[name](backbone), max_train_steps=20, seed=4).run()
    found = losses(tmp_path)
    trace = Path(__file__).parent / f"golden_{name}.json"
    if os.environ.get("DPT_WRITE_TRACE"):
        trace.write_text("[\n" + ",\n".join(json.dumps(one) for one in found) + "\n]\n")
    expected = json.loads(trace.read_text())
    assert len(found) == len(expected) == 20
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5), f"step {step}"


def losses(root: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    return [{name: one[name] for name in (*SIX, "mse", "loss") if name in one} for one in lines if "loss" in one]


def test_one_forward_to_the_feature_and_the_denoising_rows_alone_go_on(backbone: Backbone, batch: Batch) -> None:
    one, rows = task(backbone), dict[str, list[int]]()
    parts = {
        "first": backbone.unet.down_blocks[0].resnets[0],
        "feature": backbone.unet.up_blocks[1].resnets[0],
        "after": backbone.unet.up_blocks[2].resnets[0],
        "text": backbone.text_encoder.get_input_embeddings(),
    }
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: rows.setdefault(name, []).append(len(out)))
        for name, module in parts.items()
    ]
    losses_of(one, batch)
    for hook in hooks:
        hook.remove()
    assert rows == {"first": [18], "feature": [18], "after": [3], "text": [12]}


def test_the_losses_are_those_of_separate_passes(backbone: Backbone, batch: Batch) -> None:
    one = stirred(task(backbone))
    found = losses_of(one, batch)
    assert found.keys() - {"cardinality_error"} == SIX | {"mse"}
    seen = add_noise_to_batch(backbone, batch, (DENOISED,), SampleRNG(1, range(3)), NoiseConfig())
    predicted = backbone.predict(*seen.inputs((DENOISED,)))
    target = backbone.noise.target(seen.latents[TRUE], seen.noise, seen.t)
    assert float(found["mse"].detach()) == pytest.approx(float((predicted - target).square().mean().detach()), rel=1e-5)
    with torch.no_grad():
        every = one.discriminative.losses(*_features(one, batch), batch, torch.tensor(3.0))
    for name, value in every.items():
        assert float(found[name].detach()) == pytest.approx(float(value), rel=1e-4, abs=1e-5), name


def _features(one: Stage2, batch: Batch) -> tuple[Any, ...]:
    """Pair by pair, each with a pass of its own."""
    from dpt.training.tasks.discriminative import pairs_of

    pairs = pairs_of(batch)
    seen = add_noise_to_batch(one.backbone, batch, pairs, SampleRNG(1, range(len(batch))), NoiseConfig())
    read = [one.backbone.features(*seen.inputs((pair,)), FEATURE)[0] for pair in pairs]
    return torch.cat(read), seen.t.repeat(len(pairs)), seen.texts


def test_the_control_denoises_the_same(backbone: Backbone, batch: Batch) -> None:
    full = losses_of(task(backbone), batch)["mse"].detach()
    backbone.unet.delete_adapters("dpt")
    assert float(losses_of(control(backbone), batch)["mse"].detach()) == pytest.approx(float(full), rel=1e-5)


def test_min_snr_weighs_the_denoising_loss(backbone: Backbone, batch: Batch) -> None:
    plain = losses_of(task(backbone), batch)["mse"]
    backbone.unet.delete_adapters("dpt")
    weighed = losses_of(task(backbone, denoising=DenoisingConfig(snr_gamma=1.0)), batch)["mse"]
    assert 0 < float(weighed.detach()) < 0.9 * float(plain.detach())


def test_losses_of_the_feature_reach_no_further_than_it(backbone: Backbone, batch: Batch) -> None:
    one = stirred(task(backbone))
    assert reached(one, losses_of(one, batch)["i2t"]) == TO_THE_FEATURE
    assert reached(one, losses_of(one, batch)["mse"]) == TO_THE_FEATURE | {"up2"}


@pytest.mark.parametrize(
    ("after", "blocks"),
    [("up2", set()), ("up1", {"up2"}), ("mid", {"up1", "up2"}), ("bottom0", {"bottom1", "mid", "up1", "up2"})],
)
def test_detaching_cuts_skips_too(backbone: Backbone, batch: Batch, after: str, blocks: set[str]) -> None:
    """Before the feature, at it and after it: and the other losses go where they went."""
    whole = stirred(task(backbone))
    expected = {name: float(value.detach()) for name, value in losses_of(whole, batch).items()}
    backbone.unet.delete_adapters("dpt")
    one = stirred(task(backbone, denoising=DenoisingConfig(detach_after=after)))
    found = losses_of(one, batch)
    assert {name: float(value.detach()) for name, value in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    if blocks:
        assert reached(one, found["mse"]) == blocks
    else:
        assert not found["mse"].requires_grad or reached(one, found["mse"]) == set()
    assert reached(one, losses_of(one, batch)["i2t"]) == TO_THE_FEATURE


def test_what_weighs_nothing_is_not_computed(backbone: Backbone, batch: Batch) -> None:
    assert losses_of(task(backbone, objective=NOTHING), batch).keys() == {"mse"}
    backbone.unet.delete_adapters("dpt")
    assert "mse" not in losses_of(task(backbone, denoising=DenoisingConfig(weight=0.0)), batch)
    backbone.unet.delete_adapters("dpt")
    with pytest.raises(UserError, match="has weight 0"):
        losses_of(task(backbone, objective=NOTHING, denoising=DenoisingConfig(weight=0.0)), batch)


def test_without_captions_there_is_nothing_to_denoise_under(backbone: Backbone, batch: Batch) -> None:
    for one in (task(backbone), control_beside(backbone)):
        with pytest.raises(UserError, match="no captions"):
            losses_of(one, replace(batch, captions=None))


def control_beside(backbone: Backbone) -> Any:
    backbone.unet.delete_adapters("dpt")
    return control(backbone)


def test_a_block_that_there_is_not_is_refused(backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"--detach_unet_feature is one of bottom0, .*, not 'up7'"):
        task(backbone, denoising=DenoisingConfig(detach_after="up7"))


def test_adapter_and_lora_learn_and_nothing_else(tmp_path: Path, backbone: Backbone) -> None:
    one = task(backbone)
    trained = {id(p) for p in one.trained.parameters()}
    frozen = {name: p.clone() for name, p in backbone.unet.named_parameters() if id(p) not in trained}
    started = {name: p.detach().clone() for name, p in one.trained.named_parameters()}
    loop(tmp_path, one, max_train_steps=3).run()
    now = dict(backbone.unet.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    assert [name for name, p in one.trained.named_parameters() if torch.equal(p, started[name])] == []


def test_only_the_lora_can_be_trained_and_both_are_saved(tmp_path: Path, backbone: Backbone) -> None:
    one = task(backbone, only_train_lora=True, adapter={"dropout": 0.5})
    started = {name: p.detach().clone() for name, p in one.adapter.named_parameters()}
    loop(tmp_path / "run", one, max_train_steps=3).run()
    assert all(torch.equal(p, started[name]) for name, p in one.adapter.named_parameters())
    assert not one.adapter.training, "an adapter that does not learn drops nothing"
    one.export(tmp_path / "out", "some/model")
    saved = load_adapter(tmp_path / "out/adapter")[0]
    assert all(torch.equal(p, started[name]) for name, p in saved.named_parameters())
    stored = read_lora(tmp_path / "out/lora")
    expected = {name: tensor.clone() for name, tensor in one.lora.state().items()}
    one.lora.remove()
    again = attach_lora(backbone, stored, "here").state()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", TASKS)
def test_gradient_checkpointing_changes_no_number(tmp_path: Path, backbone: Backbone, name: str) -> None:
    build: Any = TASKS[name]
    for label, on in (("kept", False), ("again", True)):
        loop(tmp_path / label, build(backbone, gradient_checkpointing=on), max_train_steps=3).run()
        assert backbone.unet.is_gradient_checkpointing is on
        backbone.unet.delete_adapters("dpt")
    kept, again = (checkpoint.load(tmp_path / label / "checkpoint-3")[0]["weights"] for label in ("kept", "again"))
    assert all(torch.equal(kept[one], again[one]) for one in kept)


@pytest.mark.parametrize("name", TASKS)
def test_validation_is_the_same_at_any_time_and_split(backbone: Backbone, name: str) -> None:
    one: Task[Batch] = TASKS[name](backbone)
    one.trained.eval()
    whole = one.validate(0, 1, print)
    torch.rand(3)
    parts = [one.validate(part, 2, print) for part in range(2)]
    assert whole == one.validate(0, 1, print)
    assert whole["mse"][1] == 6
    for kind, (value, asked) in whole.items():
        summed = tuple(map(sum, zip(parts[0][kind], parts[1][kind], strict=True)))
        assert (value, asked) == pytest.approx(summed, rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_stopped_and_resumed_is_the_same_bit_for_bit(tmp_path: Path, backbone: Backbone, name: str) -> None:
    def begin(root: Path) -> Any:
        if getattr(backbone.unet, "peft_config", None):
            backbone.unet.delete_adapters("dpt")
        return loop(root, TASKS[name](backbone), max_train_steps=6)

    assert begin(tmp_path / "whole").run().finished
    one = begin(tmp_path / "cut")
    ordinary = one.take_step

    def take_step(micro_batches: Any) -> None:
        ordinary(micro_batches)
        if one.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    one.take_step = take_step
    assert one.run().step == 2
    assert begin(tmp_path / "cut").run().finished
    whole, cut = (checkpoint.load(tmp_path / label / "checkpoint-6")[0] for label in ("whole", "cut"))
    for group, tensors in whole.items():
        assert all(torch.equal(tensor, cut[group][key]) for key, tensor in tensors.items()), group
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def test_two_processes_do_what_one_does(tmp_path: Path, folder: Path, backbone: Backbone) -> None:
    """Ten steps at the same global batch. What is compared are the losses of each step and the weights at its end."""
    two_processes.run("tests.training.tiny_stage2", folder, tmp_path / "two")
    loop(tmp_path / "one", task(backbone), train_batch_size=2).run()
    two_processes.assert_same(tmp_path / "one", tmp_path / "two", losses)


@pytest.mark.parametrize("blocks", [("down",), ("up1",)], ids=str)
def test_a_lora_in_some_blocks_only(backbone: Backbone, batch: Batch, blocks: tuple[str, ...]) -> None:
    one = stirred(task(backbone, LoraConfig(rank=2, blocks=blocks)))
    expected = {"bottom0", "bottom1"} if blocks == ("down",) else {"up1"}
    assert reached(one, losses_of(one, batch)["mse"]) == expected
