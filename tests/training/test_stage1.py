"""Stage 1 on a tiny model: what it computes, that it learns, and that none of it changes unnoticed."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dpt.adapter.io.native import load_adapter
from dpt.backbone import Backbone, open_backbone
from dpt.backbone.rng import SampleRNG
from dpt.data.example import Batch, collate
from dpt.errors import UserError
from dpt.objectives.losses import match_score
from dpt.training.engine import checkpoint
from dpt.training.tasks.denoising import NoiseConfig
from dpt.training.tasks.discriminative import GROUNDING_LOSSES, MATCHING_LOSSES, ObjectiveConfig
from dpt.training.tasks.stage1 import Stage1
from tests.training import tiny_stage1, two_processes
from tests.training.tiny_stage1 import FEATURE, loop, losses, stream, task

ROOT = Path(__file__).parents[2]
TRACE = Path(__file__).parent / "golden_stage1.json"
SIX = {"i2t", "t2i", "ce", "bbox", "giou", "align"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return open_backbone(folder, device="cpu")


@pytest.fixture(scope="module")
def batch() -> Batch:
    return collate([stream()[position] for position in range(3)])


def losses_of(one: Stage1, batch: Batch, share: float | None = None) -> dict[str, float]:
    torch.manual_seed(0)
    found = one.losses(batch, SampleRNG(1, range(len(batch))), torch.tensor(share or float(one.count(batch))))
    return {name: float(value.detach()) for name, value in found.items()}


def test_the_golden_trace(tmp_path: Path, backbone: Backbone) -> None:
    """Twenty steps on one thread. Libraries may round differently; a refactor may not change more than that.

    To write it anew after a change that is meant: DPT_WRITE_TRACE=1 pytest tests/training/test_stage1.py -k golden
    """
    loop(tmp_path, task(backbone), max_train_steps=20).run()
    found = losses(tmp_path)
    if os.environ.get("DPT_WRITE_TRACE"):
        TRACE.write_text("[\n" + ",\n".join(json.dumps(one) for one in found) + "\n]\n")
    expected = json.loads(TRACE.read_text())
    assert len(found) == len(expected) == 20
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5), f"step {step}"


def test_each_frozen_part_is_called_once(backbone: Backbone, batch: Batch) -> None:
    one, calls = task(backbone), dict[str, int]()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
        for name, module in (
            ("text encoder", backbone.text_encoder),
            ("first block", backbone.unet.down_blocks[0]),
            ("block after the feature", backbone.unet.up_blocks[1]),
            ("adapter", one.adapter.transformer.encoder),
        )
    ]
    losses_of(one, batch)
    for hook in hooks:
        hook.remove()
    assert calls == {"text encoder": 1, "first block": 1, "adapter": 1}


def test_the_device_is_asked_once_in_a_step(backbone: Backbone, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the costs of the assignment."""
    one, asked = task(backbone), []
    ordinary = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: (asked.append(1), ordinary(tensor))[1])
    for name in ("item", "tolist", "__bool__", "__float__"):
        waits = f"{name} waits for the device"
        monkeypatch.setattr(torch.Tensor, name, lambda *_, waits=waits: pytest.fail(waits))
    one.losses(batch, SampleRNG(1, range(len(batch))), torch.tensor(3.0))
    assert len(asked) == 1


def test_six_calls_one_by_one_give_the_same_losses(backbone: Backbone, batch: Batch) -> None:
    """The table of section 2.1, read out call by call, without anything put together."""
    one = task(backbone)
    one.trained.eval()
    negatives, captions = batch.negatives, batch.captions
    assert negatives is not None and negatives.random is not None and captions is not None
    chance = SampleRNG(1, range(len(batch)))
    noise = chance.normal((4, 16, 16), "noise")
    t = chance.integers(backbone.noise.num_timesteps, "timestep")

    def read(pictures: torch.Tensor, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        text = backbone.encode_text(texts)
        z = backbone.noise.add_noise(backbone.encode_images(pictures), noise, t)
        vectors = one.adapter(backbone.features(z, t, text, FEATURE)[0], t).matching
        return vectors, text.match

    with torch.no_grad():
        calls = [
            read(batch.images, captions),
            read(batch.images, negatives.hard.captions),
            read(batch.images, negatives.random.captions),
            read(negatives.hard.images, captions),
            read(negatives.random.images, captions),
        ]
        scores = torch.stack([one.adapter.scale * match_score(*call) for call in calls], dim=1)
        found = losses_of(one, batch)
    assert found["i2t"] == pytest.approx(float(-scores[:, [0, 1, 2]].log_softmax(1)[:, 0].mean()), abs=1e-4)
    assert found["t2i"] == pytest.approx(float(-scores[:, [0, 3, 4]].log_softmax(1)[:, 0].mean()), abs=1e-4)


def test_half_of_the_data_is_enough(backbone: Backbone, batch: Batch) -> None:
    one = task(backbone)
    one.trained.eval()
    both = losses_of(one, batch)
    matched = losses_of(one, replace(batch, expressions=None), share=1.0)
    grounded = losses_of(one, replace(batch, negatives=None))
    assert matched.keys() == {"i2t", "t2i"} and SIX - grounded.keys() == {"i2t", "t2i"}
    for name, value in {**matched, **grounded}.items():
        assert value == pytest.approx(both[name], rel=1e-3, abs=1e-4)
    with pytest.raises(UserError, match="neither expressions nor hard negatives"):
        losses_of(one, replace(batch, negatives=None, expressions=None), share=1.0)


def test_what_weighs_nothing_is_not_computed(backbone: Backbone, batch: Batch) -> None:
    ordinary = ObjectiveConfig().weights
    for nothing, left in ((MATCHING_LOSSES, set(GROUNDING_LOSSES)), (GROUNDING_LOSSES, set(MATCHING_LOSSES))):
        weights = {name: 0.0 if name in nothing else weight for name, weight in ordinary.items()}
        found = losses_of(task(backbone, objective=ObjectiveConfig(weights)), batch)
        assert found.keys() & SIX == left
    with pytest.raises(UserError, match="has weight 0"):
        losses_of(task(backbone, objective=ObjectiveConfig(dict.fromkeys(ordinary, 0.0))), batch)


def test_an_expression_without_a_box_is_fine(backbone: Backbone, batch: Batch) -> None:
    said = batch.expressions
    assert said is not None
    none = replace(said, boxes=said.boxes[:0], num_boxes=[0] * 3, spans=[[]] * 3)
    found = losses_of(task(backbone), replace(batch, expressions=none), share=1.0)
    assert all(map(math.isfinite, found.values()))
    assert found["bbox"] == 0


def with_latents(backbone: Backbone, batch: Batch) -> Batch:
    negatives = batch.negatives
    assert negatives is not None and negatives.random is not None
    hard, random = (
        replace(each, images=backbone.encode_images(each.images)) for each in (negatives.hard, negatives.random)
    )
    images = backbone.encode_images(batch.images)
    return replace(batch, latent=True, images=images, negatives=replace(negatives, hard=hard, random=random))


def test_latents_of_a_cache_give_the_same_losses(backbone: Backbone, batch: Batch) -> None:
    cached = with_latents(backbone, batch)
    one = task(backbone)
    for name, value in losses_of(one, batch).items():
        assert losses_of(one, cached)[name] == pytest.approx(value, rel=1e-4)


def test_gradient_checkpointing_changes_no_number(tmp_path: Path, backbone: Backbone) -> None:
    for name, on in (("kept", False), ("again", True)):
        loop(tmp_path / name, task(backbone, gradient_checkpointing=on), max_train_steps=3).run()
    kept, again = (checkpoint.load(tmp_path / name / "checkpoint-3")[0]["weights"] for name in ("kept", "again"))
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_only_the_adapter_is_trained(tmp_path: Path, backbone: Backbone) -> None:
    before = {name: p.clone() for name, p in backbone.unet.named_parameters()}
    one = task(backbone)
    started = {name: p.detach().clone() for name, p in one.trained.named_parameters()}
    loop(tmp_path, one, max_train_steps=2).run()
    assert all(torch.equal(p, before[name]) for name, p in backbone.unet.named_parameters())
    assert [name for name, p in one.trained.named_parameters() if torch.equal(p, started[name])] == []


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [({"noise": NoiseConfig(noise_offset=0.5)}, SIX), ({"noise": NoiseConfig(fix_timestep=3)}, SIX),
     ({"adapter": {"contrastive_align_loss": False}}, SIX - {"align"})],
    ids=["noise offset", "fixed timestep", "no align"],
)  # fmt: skip
def test_what_can_be_asked_for_changes_the_losses(
    backbone: Backbone, batch: Batch, changes: dict[str, Any], kinds: set[str]
) -> None:
    found = losses_of(task(backbone, **changes), batch)
    assert found.keys() & SIX == kinds
    if "align" in kinds:
        assert found["i2t"] != losses_of(task(backbone), batch)["i2t"]


def test_a_timestep_that_there_is_not_is_refused(backbone: Backbone) -> None:
    with pytest.raises(UserError, match="--fix_timestep is between 0 and 999, not 1000"):
        task(backbone, noise=NoiseConfig(fix_timestep=1000))


def test_validation_is_the_same_at_any_time_and_split(backbone: Backbone) -> None:
    one = task(backbone)
    one.trained.eval()
    whole = one.validate(0, 1, print)
    torch.rand(3)
    parts = [one.validate(part, 2, print) for part in range(2)]
    assert whole == one.validate(0, 1, print)
    assert whole == {name: tuple(map(sum, zip(parts[0][name], parts[1][name], strict=True))) for name in whole}
    assert whole.keys() == {"itm_txt", "itm_img", "itm_overall", "rec_p1"}
    assert [asked for _, asked in whole.values()] == [6, 6, 12, 6]


def test_a_tie_is_not_a_right_answer(backbone: Backbone) -> None:
    one = task(backbone)
    one.trained.eval()
    torch.nn.init.zeros_(one.adapter.map_to_clip[2].weight)
    torch.nn.init.zeros_(one.adapter.map_to_clip[2].bias)
    assert one.validate(0, 1, print)["itm_overall"] == (0, 12)


def test_two_processes_do_what_one_does(tmp_path: Path, folder: Path, backbone: Backbone) -> None:
    """Ten steps at the same global batch; without dropout, whose masks are drawn by process."""
    said = two_processes.run("tests.training.tiny_stage1", folder, tmp_path / "two")
    assert "effective batch: 2 = 1 examples x 1 accumulated x 2 processes" in said
    loop(tmp_path / "one", task(backbone, adapter={"dropout": 0.0}), train_batch_size=2).run()
    two_processes.assert_same(tmp_path / "one", tmp_path / "two", losses)


def test_the_adapter_can_be_opened_elsewhere(tmp_path: Path, backbone: Backbone) -> None:
    one = task(backbone)
    one.export(tmp_path, "some/model")
    opened, record = load_adapter(tmp_path / "adapter")
    assert (record.base, record.base_hash) == ("some/model", backbone.model_hash)
    assert all(torch.equal(p, opened.state_dict()[name]) for name, p in one.adapter.state_dict().items())
