"""Every loss and gradient against the reference implementation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dpt.adapter import Adapter, AdapterConfig
from dpt.adapter.model import token_map
from dpt.backbone.noise import DDPMSchedule
from dpt.objectives.losses import (
    Assignment,
    AssignmentCosts,
    Targets,
    assign,
    assignment_cost,
    box_loss,
    cardinality_error,
    contrastive_align_loss,
    denoising_loss,
    giou_loss,
    image_to_text_loss,
    min_snr_weight,
    text_to_image_loss,
    token_loss,
)
from dpt.weights import load_strictly
from tests.golden.recipe import recipe, recipe_input, recipe_weights
from tests.golden.reference import Reference, key_shapes, load

MAPS = ("binary", "normalized")
BOXES_PER_IMAGE = (1, 3, 2)


@pytest.fixture(scope="module", params=["reduced", "full"])
def reference(request: pytest.FixtureRequest) -> Reference:
    return load(request.param)


@dataclass(frozen=True)
class Matching:
    """Vectors of 4 images, 3 candidates and 10 queries each; candidate 0 holds some of its text."""

    texts: Tensor
    under_own_text: Tensor
    under_one_text: Tensor


def matching_inputs() -> Matching:
    texts = recipe_input("itm.all_txt", (4, 3, 1024))
    own = recipe_input("itm.img_cond_different_txt", (4, 3, 10, 1024))
    one = recipe_input("itm.different_img_cond_same_txt", (4, 3, 10, 1024))
    for i in range(4):
        own[i, 0, (2 * i + 1) % 10] += 0.3 * texts[i, 0]
        one[i, 0, (2 * i + 1) % 10] += 0.3 * texts[i, 0]
        one[i, 1, (i + 3) % 10] += 0.1 * texts[i, 0]
    return Matching(texts, own.requires_grad_(), one.requires_grad_())


@dataclass(frozen=True)
class Predicted:
    pred_logits: Tensor
    pred_boxes: Tensor
    proj_queries: Tensor
    proj_tokens: Tensor


def grounding_inputs() -> Predicted:
    made = (
        recipe_input("rec.pred_logits", (3, 100, 256), scale=2.0),
        recipe_input("rec.pred_boxes_logit", (3, 100, 4)).sigmoid(),
        normalize(recipe_input("rec.proj_queries_raw", (3, 100, 64)), dim=-1),
        normalize(recipe_input("rec.proj_tokens_raw", (3, 14, 64)), dim=-1),
    )
    return Predicted(*(tensor.requires_grad_() for tensor in made))


def grounding_losses(predicted: Predicted, targets: Targets, actual: Assignment) -> dict[str, Tensor]:
    number = float(targets.present.sum())
    return {
        "loss_ce": token_loss(predicted.pred_logits, targets, actual, number),
        "loss_bbox": box_loss(predicted.pred_boxes, targets, actual, number),
        "loss_giou": giou_loss(predicted.pred_boxes, targets, actual, number),
        "loss_contrastive_align": contrastive_align_loss(
            predicted.proj_queries, predicted.proj_tokens, targets, actual, number
        ),
        "cardinality_error": cardinality_error(predicted.pred_logits, targets),
    }


def targets_of(reference: Reference, kind: str) -> Targets:
    boxes = [reference[f"rec.target_boxes.{i}"] for i in range(3)]
    return Targets.pad(boxes, list(reference[f"rec.positive_map_{kind}"].split(BOXES_PER_IMAGE)))


def test_inputs_equal_those_of_the_reference() -> None:
    values, matching, grounding = load("full"), matching_inputs(), grounding_inputs()
    values.agrees("itm.all_txt", matching.texts)
    values.agrees("itm.img_cond_different_txt", matching.under_own_text)
    values.agrees("itm.different_img_cond_same_txt", matching.under_one_text)
    for name, tensor in vars(grounding).items():
        values.agrees(f"rec.{name}", tensor)
    values.agrees("mse.pred", recipe_input("mse.pred", (4, 4, 16, 16)))
    values.agrees("mse.target", recipe_input("mse.target", (4, 4, 16, 16)))


SCALES = {
    "scale_1_over_0.07": 1 / 0.07,
    "scale_recipe": float(recipe("logit_scale", ()).exp()),
    "scale_none_temp1": 1.0,
}


@pytest.mark.parametrize("scale", SCALES)
def test_matching_losses_equal_the_reference(reference: Reference, scale: str) -> None:
    given, kappa = matching_inputs(), torch.tensor(SCALES[scale])
    i2t = image_to_text_loss(given.under_own_text, given.texts, kappa)
    t2i = text_to_image_loss(given.under_one_text, given.texts[:, 0], kappa)
    reference.agrees(f"itm.{scale}.fp32.i2t", i2t)
    reference.agrees(f"itm.{scale}.fp32.t2i", t2i)
    # The reference itself rounds to float16 here, whatever its precision: that is how far it then is from the truth.
    reference.agrees(f"itm.{scale}.half.i2t", i2t, tolerance=5e-4)
    reference.agrees(f"itm.{scale}.half.t2i", t2i, tolerance=5e-4)


def test_matching_gradients_equal_the_reference(reference: Reference) -> None:
    given, log_scale = matching_inputs(), torch.tensor(math.log(1 / 0.07), requires_grad=True)
    i2t = image_to_text_loss(given.under_own_text, given.texts, log_scale.exp())
    (i2t + text_to_image_loss(given.under_one_text, given.texts[:, 0], log_scale.exp())).backward()
    assert given.under_own_text.grad is not None
    assert given.under_one_text.grad is not None
    assert log_scale.grad is not None
    # The largest of them are 1e-3: compared a thousand times closer than losses.
    reference.agrees("itm.fp32.grad_img_cond_different_txt", given.under_own_text.grad, tolerance=1e-8)
    reference.agrees("itm.fp32.grad_different_img_cond_same_txt", given.under_one_text.grad, tolerance=1e-8)
    reference.agrees("itm.fp32.grad_log_logit_scale", log_scale.grad)


@pytest.mark.parametrize("kind", MAPS)
def test_token_maps_equal_the_reference(reference: Reference, kind: str) -> None:
    spans = reference.texts["rec_text"]["tokens_positive"]
    pairs = zip(reference["rec.offset_mapping"], spans, strict=True)
    actual = torch.cat([token_map(offsets, targets, normalised=kind == "normalized") for offsets, targets in pairs])
    reference.agrees(f"rec.positive_map_{kind}", actual)


@pytest.mark.parametrize("kind", MAPS)
def test_grounding_losses_and_gradients_equal_the_reference(reference: Reference, kind: str) -> None:
    predicted, targets = grounding_inputs(), targets_of(reference, kind)
    actual = assign(predicted.pred_logits, predicted.pred_boxes, targets)
    for i in range(3):
        order = reference[f"rec.{kind}.match.{i}.target"]
        assert torch.equal(actual.query[i][order], reference[f"rec.{kind}.match.{i}.query"])
    losses = grounding_losses(predicted, targets, actual)
    for name, loss in losses.items():
        reference.agrees(f"rec.{kind}.{name}", loss)
    weights = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2, "loss_contrastive_align": 1}
    total = torch.stack([weight * losses[name] for name, weight in weights.items()]).sum()
    reference.agrees(f"rec.{kind}.weighted_total", total)
    total.backward()
    for name, tensor in vars(predicted).items():
        reference.agrees(f"rec.{kind}.grad.{name}", tensor.grad)


def test_grounding_losses_on_adapter_outputs_equal_the_reference(reference: Reference) -> None:
    adapter = Adapter(AdapterConfig()).eval()
    load_strictly(adapter, recipe_weights(key_shapes()), "the recipe")
    with torch.no_grad():
        actual = adapter.ground(recipe_input("adapter.feat_up1", (2, 1280, 16, 16)), reference["timesteps"])
        tokens = adapter.align_text(reference["roberta_last_hidden_state"])
    assert actual.queries is not None
    predicted = Predicted(actual.logits, actual.boxes, actual.queries, tokens)
    boxes = [reference[f"rec_adapter.target_boxes.{i}"] for i in range(2)]
    targets = Targets.pad(boxes, list(reference["rec_adapter.positive_map_binary"].split((1, 3))))
    # The queries are so alike here that which of them is cheapest hangs on the last bit: theirs are taken as given.
    query = torch.zeros(2, 3, dtype=torch.long)
    for i in range(2):
        query[i, reference[f"rec_adapter.match.{i}.target"]] = reference[f"rec_adapter.match.{i}.query"]
    theirs = Assignment(query, targets.present)
    for name, loss in grounding_losses(predicted, targets, theirs).items():
        reference.agrees(f"rec_adapter.{name}", loss)
    cost = assignment_cost(actual.logits, actual.boxes, targets.boxes, targets.tokens, AssignmentCosts())
    ours = assign(actual.logits, actual.boxes, targets)
    paid = [(cost.mT * assignment.one_hot(100)).sum().item() for assignment in (ours, theirs)]
    assert paid[0] == pytest.approx(paid[1], abs=1e-5)


def test_denoising_loss_equals_the_reference(reference: Reference) -> None:
    schedule = DDPMSchedule({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
    predicted, target = recipe_input("mse.pred", (4, 4, 16, 16)), recipe_input("mse.target", (4, 4, 16, 16))
    t = reference["mse.timesteps"]
    reference.agrees("mse.snr", schedule.snr(t))
    reference.agrees("mse.none", denoising_loss(predicted, target))
    weight = min_snr_weight(schedule.snr(t), 5.0, "epsilon")
    reference.agrees("mse.snr_gamma_5", denoising_loss(predicted, target, weight))
