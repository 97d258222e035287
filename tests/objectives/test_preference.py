"""The list-wise loss by hand, and agreement of scores with choices."""

from __future__ import annotations

import math

import pytest
import torch

from dpt.objectives.losses import agreement, listwise_loss


def by_hand(scores: list[float], chosen: int) -> float:
    return -math.log(math.exp(scores[chosen]) / sum(map(math.exp, scores)))


GROUPS = [([0.5, -1.0], 1), ([2.0, 0.3, 0.1], 0), ([0.0, 3.0, 1.0, -2.0], 3)]


def ragged(groups: list[tuple[list[float], int]]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    logits = torch.tensor([score for scores, _ in groups for score in scores], requires_grad=True)
    target = torch.tensor([float(i == chosen) for scores, chosen in groups for i in range(len(scores))])
    return logits, target, [len(scores) for scores, _ in groups]


def test_ragged_groups_have_the_loss_computed_by_hand_without_influence_of_padding() -> None:
    logits, target, sizes = ragged(GROUPS)
    losses = listwise_loss(logits, target, sizes)
    assert losses.tolist() == pytest.approx([by_hand(*group) for group in GROUPS], rel=1e-5)
    losses.sum().backward()
    alone = [ragged([group]) for group in GROUPS]
    for parts in alone:
        listwise_loss(*parts).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    torch.testing.assert_close(logits.grad, torch.cat([own.grad for own, _, _ in alone if own.grad is not None]))


def test_two_images_give_the_bradley_terry_loss_and_one_gives_zero() -> None:
    logits, target, sizes = ragged([([1.5, -0.25], 1)])
    assert listwise_loss(logits, target, sizes).item() == pytest.approx(math.log(1 + math.exp(1.75)), rel=1e-6)
    assert listwise_loss(*ragged([([7.0], 0)])).item() == 0
    soft = listwise_loss(logits, torch.tensor([0.5, 0.5]), [2])
    assert soft.item() == pytest.approx((by_hand([1.5, -0.25], 0) + by_hand([1.5, -0.25], 1)) / 2, rel=1e-6)


def test_loss_is_invariant_to_permuting_images_with_their_labels() -> None:
    logits, target, sizes = ragged(GROUPS[2:])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(listwise_loss(logits[order], target[order], sizes), listwise_loss(logits, target, sizes))


def test_top1_and_pairwise_accuracy_with_ties_counted_as_chance() -> None:
    first_of_four = agreement([3, 1, 2, 0], [0, 1, 1, 1])
    assert (first_of_four.top1, first_of_four.chance, first_of_four.pairs, first_of_four.ordered) == (1, 0.25, 3, 3)
    second = agreement([2, 3, 1, 0], [0, 1, 1, 1])
    assert (second.top1, second.ordered) == (0, 2)
    ranking = agreement([1, 2, 3], [2, 1, 3])
    assert (ranking.top1, ranking.pairs, ranking.ordered) == (0, 3, 1)
    blind = agreement([5, 5, 5, 5], [1, 0, 1, 1])
    assert (blind.top1, blind.chance, blind.ordered) == (0.25, 0.25, 1.5)
    assert agreement([1, 2], [0, 0]).pairs == 0
