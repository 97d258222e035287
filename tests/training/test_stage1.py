"""Stage 1 on a tiny model: its losses, what it trains, and the golden trace."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dpt.adapter.io import load_adapter
from dpt.backbone import Backbone, open_backbone
from dpt.backbone.rng import SampleRNG
from dpt.data.example import Batch, collate
from dpt.errors import UserError
from dpt.objectives.losses import match_score
from dpt.training.engine import run_folder
from dpt.training.tasks.denoising import NoiseConfig
from dpt.training.tasks.discriminative import GROUNDING_LOSSES, MATCHING_LOSSES, ObjectiveConfig
from dpt.training.tasks.stages import Stage1
from tests.training import tiny_stage1, two_processes
from tests.training.tiny_stage1 import FEATURE, loop, losses, stream, task

ROOT = Path(__file__).parents[2]
TRACE = Path(__file__).parent / "golden_stage1.json"
LOSS_NAMES = {"i2t", "t2i", "ce", "bbox", "giou", "align"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return open_backbone(folder, device="cpu")


@pytest.fixture(scope="module")
def batch() -> Batch:
    return collate([stream()[position] for position in range(3)])


def losses_of(stage1: Stage1, batch: Batch, num_boxes: float | None = None) -> dict[str, float]:
    torch.manual_seed(0)
    values = stage1.losses(
        batch, SampleRNG(1, range(len(batch))), torch.tensor(num_boxes or float(stage1.count(batch)))
    )
    return {name: float(value.detach()) for name, value in values.items()}


def test_golden_trace(tmp_path: Path, backbone: Backbone) -> None:
    """Twenty steps on one thread, within the rounding differences of libraries.

    To rewrite the trace after an intended change: DPT_WRITE_TRACE=1 pytest tests/training/test_stage1.py -k golden
    """
    loop(tmp_path, task(backbone), max_train_steps=20).run()
    trace = losses(tmp_path)
    if os.environ.get("DPT_WRITE_TRACE"):
        TRACE.write_text("[\n" + ",\n".join(json.dumps(one) for one in trace) + "\n]\n")
    expected = json.loads(TRACE.read_text())
    assert len(trace) == len(expected) == 20
    for step, (one, other) in enumerate(zip(trace, expected, strict=True)):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5), f"step {step}"


def test_each_frozen_module_runs_once_per_step(backbone: Backbone, batch: Batch) -> None:
    stage1, calls = task(backbone), dict[str, int]()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
        for name, module in (
            ("text encoder", backbone.text_encoder),
            ("first block", backbone.unet.down_blocks[0]),
            ("block after the feature", backbone.unet.up_blocks[1]),
            ("adapter", stage1.adapter.transformer.encoder),
        )
    ]
    losses_of(stage1, batch)
    for hook in hooks:
        hook.remove()
    assert calls == {"text encoder": 1, "first block": 1, "adapter": 1}


def test_step_synchronises_with_the_device_once(
    backbone: Backbone, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the costs of the assignment are copied to the CPU."""
    stage1, transfers = task(backbone), []
    tensor_to_cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: (transfers.append(1), tensor_to_cpu(tensor))[1])
    for name in ("item", "tolist", "__bool__", "__float__"):
        message = f"{name} waits for the device"
        monkeypatch.setattr(torch.Tensor, name, lambda *_, message=message: pytest.fail(message))
    stage1.losses(batch, SampleRNG(1, range(len(batch))), torch.tensor(3.0))
    assert len(transfers) == 1


def test_separate_forward_passes_give_the_same_losses(backbone: Backbone, batch: Batch) -> None:
    """The calls of section 2.1, one by one instead of batched."""
    stage1 = task(backbone)
    stage1.trained.eval()
    negatives, captions = batch.negatives, batch.captions
    assert negatives is not None and negatives.random is not None and captions is not None
    rng = SampleRNG(1, range(len(batch)))
    noise = rng.normal((4, 16, 16), "noise")
    t = rng.integers(backbone.noise.num_timesteps, "timestep")

    def encode(images: torch.Tensor, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        text = backbone.encode_text(texts)
        z = backbone.noise.add_noise(backbone.encode_images(images), noise, t)
        vectors = stage1.adapter(backbone.features(z, t, text, FEATURE)[0], t).matching
        return vectors, text.match

    with torch.no_grad():
        calls = [
            encode(batch.images, captions),
            encode(batch.images, negatives.hard.captions),
            encode(batch.images, negatives.random.captions),
            encode(negatives.hard.images, captions),
            encode(negatives.random.images, captions),
        ]
        scores = torch.stack([stage1.adapter.scale * match_score(*call) for call in calls], dim=1)
        values = losses_of(stage1, batch)
    assert values["i2t"] == pytest.approx(float(-scores[:, [0, 1, 2]].log_softmax(1)[:, 0].mean()), abs=1e-4)
    assert values["t2i"] == pytest.approx(float(-scores[:, [0, 3, 4]].log_softmax(1)[:, 0].mean()), abs=1e-4)


def test_expressions_or_negatives_alone_can_be_trained_on(backbone: Backbone, batch: Batch) -> None:
    stage1 = task(backbone)
    stage1.trained.eval()
    both = losses_of(stage1, batch)
    matched = losses_of(stage1, replace(batch, expressions=None), num_boxes=1.0)
    grounded = losses_of(stage1, replace(batch, negatives=None))
    assert matched.keys() == {"i2t", "t2i"} and LOSS_NAMES - grounded.keys() == {"i2t", "t2i"}
    for name, value in {**matched, **grounded}.items():
        assert value == pytest.approx(both[name], rel=1e-3, abs=1e-4)
    with pytest.raises(UserError, match="neither expressions nor hard negatives"):
        losses_of(stage1, replace(batch, negatives=None, expressions=None), num_boxes=1.0)


def test_losses_with_weight_zero_are_not_computed(backbone: Backbone, batch: Batch) -> None:
    defaults = ObjectiveConfig().weights
    for disabled, remaining in ((MATCHING_LOSSES, set(GROUNDING_LOSSES)), (GROUNDING_LOSSES, set(MATCHING_LOSSES))):
        weights = {name: 0.0 if name in disabled else weight for name, weight in defaults.items()}
        values = losses_of(task(backbone, objective=ObjectiveConfig(weights)), batch)
        assert values.keys() & LOSS_NAMES == remaining
    with pytest.raises(UserError, match="has weight 0"):
        losses_of(task(backbone, objective=ObjectiveConfig(dict.fromkeys(defaults, 0.0))), batch)


def test_expressions_without_boxes_have_finite_losses(backbone: Backbone, batch: Batch) -> None:
    expressions = batch.expressions
    assert expressions is not None
    without_boxes = replace(expressions, boxes=expressions.boxes[:0], num_boxes=[0] * 3, spans=[[]] * 3)
    values = losses_of(task(backbone), replace(batch, expressions=without_boxes), num_boxes=1.0)
    assert all(map(math.isfinite, values.values()))
    assert values["bbox"] == 0


def with_latents(backbone: Backbone, batch: Batch) -> Batch:
    negatives = batch.negatives
    assert negatives is not None and negatives.random is not None
    hard, random = (
        replace(each, images=backbone.encode_images(each.images)) for each in (negatives.hard, negatives.random)
    )
    images = backbone.encode_images(batch.images)
    return replace(batch, latent=True, images=images, negatives=replace(negatives, hard=hard, random=random))


def test_cached_latents_give_the_same_losses(backbone: Backbone, batch: Batch) -> None:
    cached = with_latents(backbone, batch)
    stage1 = task(backbone)
    for name, value in losses_of(stage1, batch).items():
        assert losses_of(stage1, cached)[name] == pytest.approx(value, rel=1e-4)


def test_gradient_checkpointing_does_not_change_the_weights(tmp_path: Path, backbone: Backbone) -> None:
    for name, on in (("kept", False), ("again", True)):
        loop(tmp_path / name, task(backbone, gradient_checkpointing=on), max_train_steps=3).run()
    stored, recomputed = (run_folder.load(tmp_path / name / "checkpoint-3")[0]["weights"] for name in ("kept", "again"))
    assert all(torch.equal(stored[name], recomputed[name]) for name in stored)


def test_only_the_adapter_is_trained_in_stage_1(tmp_path: Path, backbone: Backbone) -> None:
    before = {name: p.clone() for name, p in backbone.unet.named_parameters()}
    stage1 = task(backbone)
    initial = {name: p.detach().clone() for name, p in stage1.trained.named_parameters()}
    loop(tmp_path, stage1, max_train_steps=2).run()
    assert all(torch.equal(p, before[name]) for name, p in backbone.unet.named_parameters())
    assert [name for name, p in stage1.trained.named_parameters() if torch.equal(p, initial[name])] == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [({"noise": NoiseConfig(noise_offset=0.5)}, LOSS_NAMES), ({"noise": NoiseConfig(fix_timestep=3)}, LOSS_NAMES),
     ({"adapter": {"contrastive_align_loss": False}}, LOSS_NAMES - {"align"})],
    ids=["noise offset", "fixed timestep", "no align"],
)  # fmt: skip
def test_options_change_the_losses(backbone: Backbone, batch: Batch, changes: dict[str, Any], names: set[str]) -> None:
    values = losses_of(task(backbone, **changes), batch)
    assert values.keys() & LOSS_NAMES == names
    if "align" in names:
        assert values["i2t"] != losses_of(task(backbone), batch)["i2t"]


def test_timesteps_that_the_model_lacks_are_refused(backbone: Backbone) -> None:
    with pytest.raises(UserError, match="--fix_timestep is between 0 and 999, not 1000"):
        task(backbone, noise=NoiseConfig(fix_timestep=1000))
    with pytest.raises(UserError, match="--logit_mean and --logit_std are for flow matching models"):
        task(backbone, noise=NoiseConfig(logit_mean=-1.0))


def test_validation_is_deterministic_and_independent_of_the_split(backbone: Backbone) -> None:
    stage1 = task(backbone)
    stage1.trained.eval()
    whole = stage1.validate(0, 1, print)
    torch.rand(3)
    parts = [stage1.validate(part, 2, print) for part in range(2)]
    assert whole == stage1.validate(0, 1, print)
    for name, sums in whole.items():
        assert sums == pytest.approx(tuple(map(sum, zip(parts[0][name], parts[1][name], strict=True))), rel=1e-5)
    assert [whole[name][1] for name in ("itm_txt", "itm_img", "itm_overall", "rec_p1")] == [6, 6, 12, 6]
    assert whole.keys() - LOSS_NAMES == {"itm_txt", "itm_img", "itm_overall", "rec_p1"}


def test_held_out_losses_are_the_training_losses_of_fixed_examples(backbone: Backbone) -> None:
    """Of one batch, timestep and noise, they are what training would minimise."""
    stage1 = task(backbone)
    stage1.trained.eval()
    counted: list[int] = []
    tally = stage1.validate(0, 1, counted.append)
    assert sum(counted) == stage1.num_validation_examples == 12
    examples = [stage1.held_out.streams["scenes"][n] for n in range(6)]
    held_out = collate(examples)
    boxes = torch.tensor(float(stage1.count(held_out)))
    expected = stage1.losses(held_out, SampleRNG(0, range(6)), boxes)
    for name in LOSS_NAMES:
        total, count = tally[name]
        assert count == (6 if name in ("i2t", "t2i") else boxes)
        assert total / count == pytest.approx(float(expected[name].detach()), rel=1e-4)


def test_held_out_losses_are_those_with_a_weight(backbone: Backbone) -> None:
    weights = {**ObjectiveConfig().weights, "ce": 0.0, "i2t": 0.0}
    names = task(backbone, objective=ObjectiveConfig(weights)).validate(0, 1, print).keys() & LOSS_NAMES
    assert names == LOSS_NAMES - {"ce", "i2t"}
    names = task(backbone, score_grounding=False).validate(0, 1, print).keys() & LOSS_NAMES
    assert names == {"i2t", "t2i"}


def test_validating_changes_no_bit_of_the_training(tmp_path: Path, backbone: Backbone) -> None:
    for name, every in (("never", 0), ("each", 1)):
        loop(tmp_path / name, task(backbone), max_train_steps=3, validation_steps=every).run()
    never, each = (run_folder.load(tmp_path / name / "checkpoint-3")[0] for name in ("never", "each"))
    assert all(torch.equal(never[group][name], value) for group in each for name, value in each[group].items())
    assert losses(tmp_path / "never") == losses(tmp_path / "each")
    lines = [json.loads(line) for line in (tmp_path / "each" / "log.jsonl").read_text().splitlines()]
    validated = [line["validation"] for line in lines if "validation" in line]
    weights = ObjectiveConfig().weights
    for metrics in validated:
        assert metrics["loss"] == pytest.approx(sum(weights[name] * metrics[name] for name in LOSS_NAMES))
    assert len({metrics["loss"] for metrics in validated}) == 3


def test_tied_scores_count_as_wrong(backbone: Backbone) -> None:
    stage1 = task(backbone)
    stage1.trained.eval()
    torch.nn.init.zeros_(stage1.adapter.map_to_clip[2].weight)
    torch.nn.init.zeros_(stage1.adapter.map_to_clip[2].bias)
    assert stage1.validate(0, 1, print)["itm_overall"] == (0, 12)


def test_two_processes_equal_one(tmp_path: Path, folder: Path, backbone: Backbone) -> None:
    """Ten steps at the same global batch, without dropout, whose masks depend on the process."""
    output = two_processes.run("tests.training.tiny_stage1", folder, tmp_path / "two")
    assert "effective batch: 2 = 1 examples x 1 accumulated x 2 processes" in output
    loop(tmp_path / "one", task(backbone, adapter={"dropout": 0.0}), train_batch_size=2).run()
    two_processes.assert_same(tmp_path / "one", tmp_path / "two", losses)


def test_exported_adapter_can_be_opened(tmp_path: Path, backbone: Backbone) -> None:
    stage1 = task(backbone)
    stage1.export(tmp_path, "some/model")
    opened, record = load_adapter(tmp_path / "adapter")
    assert (record.base, record.base_hash) == ("some/model", backbone.model_hash)
    assert all(torch.equal(p, opened.state_dict()[name]) for name, p in stage1.adapter.state_dict().items())
