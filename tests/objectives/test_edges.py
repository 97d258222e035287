"""Edge cases of the losses: no or too many targets, half precision, degenerate boxes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.training_utils import compute_snr
from torch import Tensor
from torch.nn.functional import normalize

from dpt.backbone.noise import DDPMSchedule
from dpt.errors import UserError
from dpt.objectives.losses import (
    Assignment,
    AssignmentCosts,
    Targets,
    assign,
    box_loss,
    cardinality_error,
    contrastive_align_loss,
    cxcywh_to_xyxy,
    denoising_loss,
    giou,
    giou_loss,
    image_to_text_loss,
    iou,
    match_score,
    min_snr_weight,
    pairwise_giou,
    pairwise_iou,
    text_to_image_loss,
    token_loss,
    xyxy_to_cxcywh,
)

QUERIES, SLOTS, TOKENS = 6, 9, 5


def predictions(rows: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    made = {
        "logits": torch.randn(rows, QUERIES, SLOTS),
        "boxes": torch.rand(rows, QUERIES, 4),
        "queries": normalize(torch.randn(rows, QUERIES, 8), dim=-1),
        "tokens": normalize(torch.randn(rows, TOKENS, 8), dim=-1),
    }
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in made.items()}


def targets(counts: tuple[int, ...]) -> Targets:
    torch.manual_seed(1)
    boxes = [torch.rand(count, 4) * 0.5 + 0.25 for count in counts]
    tokens = [torch.zeros(count, SLOTS) for count in counts]
    for image_tokens in tokens:
        for i, row in enumerate(image_tokens):
            row[i % TOKENS] = row[(i + 1) % TOKENS] = 0.5
    return Targets.pad(boxes, tokens)


def losses(
    outputs: dict[str, Tensor], expected_targets: Targets, actual: Assignment | None = None
) -> dict[str, Tensor]:
    actual = actual or assign(outputs["logits"], outputs["boxes"], expected_targets)
    number = expected_targets.present.sum().clamp(min=1)
    return {
        "token": token_loss(outputs["logits"], expected_targets, actual, number),
        "box": box_loss(outputs["boxes"], expected_targets, actual, number),
        "giou": giou_loss(outputs["boxes"], expected_targets, actual, number),
        "align": contrastive_align_loss(outputs["queries"], outputs["tokens"], expected_targets, actual, number),
        "cardinality": cardinality_error(outputs["logits"], expected_targets),
    }


@pytest.mark.parametrize("counts", [(0, 0, 0), (0, 2, 0), (1, 4, 2)], ids=str)
def test_batch_loss_is_the_sum_over_images(counts: tuple[int, ...]) -> None:
    outputs, expected_targets = predictions(), targets(counts)
    together = losses(outputs, expected_targets)
    total = max(sum(counts), 1)
    for name in ("token", "box", "giou", "align"):
        alone = 0.0
        for i, count in enumerate(counts):
            rows = slice(i, i + 1)
            image_targets = Targets(
                expected_targets.boxes[rows, :count],
                expected_targets.tokens[rows, :count],
                expected_targets.present[rows, :count],
            )
            alone += losses({key: tensor[rows] for key, tensor in outputs.items()}, image_targets)[name].item() * max(
                count, 1
            )
        assert together[name].item() == pytest.approx(alone / total, rel=1e-5), name


def test_images_without_boxes_train_only_the_no_object_class() -> None:
    outputs, expected_targets = predictions(), targets((0, 0, 0))
    actual = losses(outputs, expected_targets)
    expected = -0.1 * outputs["logits"].log_softmax(-1)[..., -1].sum()
    torch.testing.assert_close(actual["token"], expected)
    assert [actual[name].item() for name in ("box", "giou", "align")] == [0, 0, 0]
    sum(actual.values()).backward()
    assert all(tensor.grad is None or tensor.grad.isfinite().all() for tensor in outputs.values())


def test_surplus_targets_are_left_unmatched() -> None:
    outputs, expected_targets = predictions(), targets((QUERIES + 3, 1, 0))
    actual = assign(outputs["logits"], outputs["boxes"], expected_targets)
    assert actual.matched.sum(dim=1).tolist() == [QUERIES, 1, 0]
    assert sorted(actual.query[0][actual.matched[0]].tolist()) == list(range(QUERIES))
    assert all(loss.isfinite() for loss in losses(outputs, expected_targets, actual).values())


def test_boxes_of_one_phrase_are_matched_to_different_queries() -> None:
    outputs = predictions(1)
    expected_targets = targets((3,))
    expected_targets.tokens[:] = expected_targets.tokens[:, :1]
    actual = assign(outputs["logits"], outputs["boxes"], expected_targets)
    assert len(set(actual.query[0].tolist())) == 3
    sum(losses(outputs, expected_targets, actual).values()).backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in outputs.values())


def test_phrase_without_tokens_keeps_its_box_loss() -> None:
    outputs, expected_targets = predictions(), targets((1, 0, 0))
    expected_targets.tokens.zero_()
    actual = losses(outputs, expected_targets)
    assert actual["align"] == 0
    assert actual["box"] > 0
    sum(actual.values()).backward()
    assert all(tensor.grad is None or tensor.grad.isfinite().all() for tensor in outputs.values())


def test_assignment_minimises_the_cost() -> None:
    expected_targets = targets((2, 3, 1))
    outputs = predictions()
    with torch.no_grad():
        for i, count in enumerate((2, 3, 1)):
            for j in range(count):
                outputs["boxes"][i, 2 * j] = expected_targets.boxes[i, j]
                outputs["logits"][i, 2 * j] = 20 * expected_targets.tokens[i, j]
    actual = assign(outputs["logits"], outputs["boxes"], expected_targets)
    assert torch.equal(actual.query[expected_targets.present], torch.tensor([0, 2, 0, 2, 4, 0]))
    assert losses(outputs, expected_targets, actual)["box"] == 0
    assert losses(outputs, expected_targets, actual)["giou"].item() == pytest.approx(0, abs=1e-6)


def test_assignment_needs_one_device_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers = []
    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: transfers.append(self.shape) or cpu(self))
    outputs = predictions()
    assign(outputs["logits"], outputs["boxes"], targets((2, 3, 1)))
    assert transfers == [(3, QUERIES + 1, 3)]


def test_losses_run_on_the_meta_device() -> None:
    """Reading a value on the meta device is an error, so losses that run there never synchronise."""
    outputs = {name: tensor.detach().to("meta").requires_grad_() for name, tensor in predictions().items()}
    expected_targets = targets((2, 3, 0)).to("meta")
    actual = Assignment(torch.zeros(3, 3, dtype=torch.long, device="meta"), expected_targets.present)
    vectors = torch.randn(2, 3, 4, 8, device="meta", requires_grad=True)
    texts = torch.randn(2, 3, 8, device="meta")
    total = sum(losses(outputs, expected_targets, actual).values()) + image_to_text_loss(vectors, texts, texts.sum())
    (total + text_to_image_loss(vectors, texts[:, 0], 1.0) + denoising_loss(vectors, vectors * 2)).backward()
    assert vectors.grad is not None


def test_nan_predictions_give_a_nan_loss_without_an_error() -> None:
    outputs, expected_targets = predictions(), targets((2, 1, 0))
    with torch.no_grad():
        outputs["boxes"][0] = float("nan")
    actual = losses(outputs, expected_targets)
    assert actual["box"].isnan()
    assert actual["giou"].isnan()
    assert actual["token"].isfinite()


@pytest.mark.parametrize("autocast", [False, True])
def test_grounding_losses_compute_in_float32_for_half_precision_inputs(autocast: bool) -> None:
    outputs, expected_targets = predictions(dtype=torch.bfloat16), targets((1, 3, 0))
    widened = {name: tensor.detach().float() for name, tensor in outputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        actual = losses(outputs, expected_targets)
    for name, loss in losses(widened, expected_targets).items():
        assert actual[name].dtype == torch.float32
        assert torch.equal(actual[name], loss), name


def test_matching_losses_compute_in_float32_for_half_precision_inputs() -> None:
    torch.manual_seed(0)
    vectors, texts = torch.randn(2, 3, 4, 8).bfloat16(), torch.randn(2, 3, 8).bfloat16()
    for call in (
        lambda v, c: image_to_text_loss(v, c, 14.0),
        lambda v, c: text_to_image_loss(v, c[:, 0], torch.tensor(14.0)),
        lambda v, c: match_score(v, c).sum(),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = call(vectors, texts)
        assert actual.dtype == torch.float32
        assert torch.equal(actual, call(vectors.float(), texts.float()))


def test_each_caption_is_scored_with_its_own_features() -> None:
    texts = torch.eye(3)[None]
    vectors = texts[:, :, None].clone()  # the reading under caption k says caption k
    assert torch.equal(match_score(vectors, texts), torch.ones(1, 3))
    assert torch.equal(match_score(vectors, texts[:, :1]), torch.tensor([[1.0, 0, 0]]))
    assert image_to_text_loss(vectors, texts, 100.0).item() == pytest.approx(torch.tensor(3.0).log().item())
    assert text_to_image_loss(vectors, texts[:, 0], 100.0).item() == pytest.approx(0, abs=1e-6)


def test_padding_tokens_count_only_if_configured() -> None:
    outputs, expected_targets = predictions(), targets((1, 2, 1))
    actual = assign(outputs["logits"], outputs["boxes"], expected_targets)
    padded = torch.cat([outputs["tokens"], normalize(torch.randn(3, 4, 8), dim=-1)], dim=1)
    mask = torch.arange(TOKENS + 4).expand(3, -1) < TOKENS

    def loss(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return contrastive_align_loss(outputs["queries"], tokens, expected_targets, actual, 4, token_mask=mask)

    torch.testing.assert_close(loss(padded, mask), loss(outputs["tokens"]))
    assert (loss(padded) - loss(outputs["tokens"])).abs() > 1e-2


def test_expression_longer_than_the_token_slots() -> None:
    outputs, expected_targets = predictions(), targets((1, 2, 1))
    long = normalize(torch.randn(3, SLOTS + 6, 8), dim=-1)
    assert losses(outputs | {"tokens": long}, expected_targets)["align"].isfinite()


BOXES = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.3, 0.4, 0.9, 0.8], [0.6, 0.7, 0.7, 0.9]])


def test_giou_of_a_known_example() -> None:
    a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 3.0, 3.0])
    assert iou(a, b).item() == pytest.approx(1 / 7)
    assert giou(a, b).item() == pytest.approx(1 / 7 - 2 / 9)
    assert giou(a, a).item() == 1
    assert giou(a, a + 10).item() == pytest.approx(8 / 144 - 1)


def test_pairwise_giou_covers_all_pairs() -> None:
    for pairwise, alone in ((pairwise_iou, iou), (pairwise_giou, giou)):
        actual = pairwise(BOXES, BOXES[:2])
        assert actual.shape == (3, 2)
        assert actual[2, 1] == alone(BOXES[2], BOXES[1])
        assert torch.equal(pairwise(BOXES[None], BOXES[None, :2]), actual[None])


def test_box_conversion_round_trips() -> None:
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(BOXES)), BOXES)
    assert torch.equal(cxcywh_to_xyxy(torch.tensor([0.5, 0.5, 0.5, 0.25])), torch.tensor([0.25, 0.375, 0.75, 0.625]))


@pytest.mark.parametrize("size", [(0.0, 0.0), (0.0, 0.4), (1e-20, 1e-20)], ids=str)
def test_boxes_without_area_have_finite_giou_and_gradient(size: tuple[float, float]) -> None:
    flat = torch.tensor([0.5, 0.5, *size])
    for other in (flat.clone(), torch.tensor([0.5, 0.5, 0.4, 0.4])):
        box = flat.clone().requires_grad_()
        overlap = giou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(other))
        assert -1 <= overlap <= 0
        overlap.backward()
        assert box.grad is not None
        assert box.grad.abs().max() < 1e3


def test_nan_box_does_not_affect_the_others() -> None:
    broken = BOXES.clone()
    broken[1] = float("nan")
    actual = pairwise_giou(broken, BOXES)
    assert actual[1].isnan().all()
    assert torch.equal(actual[[0, 2]], pairwise_giou(BOXES, BOXES)[[0, 2]])


def schedule(**config: Any) -> DDPMSchedule:
    return DDPMSchedule({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **config})


def test_min_snr_loss_is_the_same_for_every_prediction_type() -> None:
    """min(snr, gamma) |z_0 - z_0'|^2 is the same number for a guess of epsilon, of v and of z_0."""
    noise, t = schedule(), torch.tensor([5, 300, 900])
    torch.manual_seed(0)
    clean, eps, guessed = (torch.randn(3, 4, 8, 8) for _ in range(3))
    abar = noise.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    z = noise.add_noise(clean, eps, t)
    velocity = abar.sqrt() * eps - (1 - abar).sqrt() * clean
    guesses = {
        "sample": (guessed, clean),
        "epsilon": ((z - abar.sqrt() * guessed) / (1 - abar).sqrt(), eps),
        "v_prediction": ((abar.sqrt() * z - guessed) / (1 - abar).sqrt(), velocity),
    }
    actual = {
        kind: denoising_loss(*pair, min_snr_weight(noise.snr(t), 5.0, kind)).item() for kind, pair in guesses.items()
    }
    assert actual["epsilon"] == pytest.approx(actual["sample"], rel=1e-3)
    assert actual["v_prediction"] == pytest.approx(actual["sample"], rel=1e-3)


def test_min_snr_weights_equal_those_of_diffusers_scripts() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    t = torch.tensor([0, 3, 500, 999])
    snr, schedule_snr = compute_snr(scheduler, t), schedule().snr(t)
    torch.testing.assert_close(min_snr_weight(schedule_snr, 5.0, "v_prediction"), snr.clamp(max=5) / (snr + 1))
    torch.testing.assert_close(min_snr_weight(schedule_snr, 5.0, "epsilon"), snr.clamp(max=5) / snr)


def test_min_snr_weight_at_zero_snr() -> None:
    noise = schedule(rescale_betas_zero_snr=True)
    last = noise.snr(torch.tensor([noise.num_timesteps - 1]))
    assert min_snr_weight(last, 5.0, "epsilon").item() == pytest.approx(1)
    assert min_snr_weight(last, 5.0, "v_prediction").isfinite().all()
    with pytest.raises(UserError, match="not known for the prediction type 'flow'"):
        min_snr_weight(torch.ones(1), 5.0, "flow")


def test_assignment_costs_can_be_weighted() -> None:
    outputs, expected_targets = predictions(), targets((2, 1, 0))
    only_tokens = assign(outputs["logits"], outputs["boxes"], expected_targets, AssignmentCosts(1, 0, 0))
    probability = outputs["logits"].softmax(-1)[1] @ expected_targets.tokens[1, 0]
    assert only_tokens.query[1, 0] == probability.argmax()
