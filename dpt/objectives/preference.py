"""The list-wise preference loss over groups of different sizes, and how often scores agree with the choices.

A batch holds the images of all groups in one row; `sizes` says how many belong to each group. Groups are padded with
scores that no softmax sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dpt.backbone.device import full_precision


def padded(values: Tensor, sizes: Sequence[int], filler: float) -> Tensor:
    """(sum of sizes,) to (groups, largest size)."""
    return pad_sequence(list(values.split(list(sizes))), batch_first=True, padding_value=filler)


@full_precision
def listwise_loss(logits: Tensor, target: Tensor, sizes: Sequence[int]) -> Tensor:
    """-sum_j target_j log softmax(logits)_j within each group, (groups,). A group of one gives 0.

    With two images and a one-hot target this is the Bradley-Terry loss -log sigmoid(s_chosen - s_other).
    """
    log_probabilities = padded(logits, sizes, float("-inf")).log_softmax(dim=-1)
    # 0 * -inf would be NaN, in the gradient too.
    log_probabilities = log_probabilities.masked_fill(log_probabilities == float("-inf"), 0.0)
    return -(padded(target, sizes, 0.0) * log_probabilities).sum(dim=-1)


@dataclass(frozen=True)
class Agreement:
    """Of one record."""

    top1: float
    """1 if the image of highest score is (one of) the best, 0 if not. Between equal scores, the share that is."""
    chance: float
    """The expected `top1` of a random choice."""
    pairs: int
    """Pairs of images of which one is better."""
    ordered: float
    """How many of them the scores order correctly; equal scores count a half."""


def agreement(scores: Sequence[float], ranks: Sequence[float]) -> Agreement:
    """`ranks`: the smallest is the best."""
    best = [rank == min(ranks) for rank in ranks]
    highest = [is_best for score, is_best in zip(scores, best, strict=True) if score == max(scores)]
    pairs, ordered = 0, 0.0
    for i in range(len(ranks)):
        for j in range(len(ranks)):
            if ranks[i] < ranks[j]:
                pairs += 1
                ordered += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    return Agreement(sum(highest) / len(highest), sum(best) / len(best), pairs, ordered)


def pick_probabilities(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """softmax(scores) within each group, in one row again."""
    return torch.cat([group.softmax(dim=0) for group in scores.split(list(sizes))])
