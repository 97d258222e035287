"""Which query answers for which target: the cheapest one-to-one assignment in each image (section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dpt.backbone.device import full_precision
from dpt.objectives.boxes import cxcywh_to_xyxy, pairwise_giou


@dataclass(frozen=True)
class Targets:
    """What each image should be grounded to, padded to the image with most."""

    boxes: Tensor  # (B,T,4): cx, cy, w, h
    tokens: Tensor  # (B,T,S): the token map of each target's phrase
    present: Tensor  # (B,T), false at padding

    def to(self, device: torch.device | str) -> Targets:
        return Targets(self.boxes.to(device), self.tokens.to(device), self.present.to(device))

    @staticmethod
    def pad(boxes: list[Tensor], tokens: list[Tensor]) -> Targets:
        """From each image's own (T_i,4) and (T_i,S)."""
        most = max(map(len, boxes), default=0)
        present = torch.stack([torch.arange(most) < len(own) for own in boxes])
        return Targets(_stack(boxes, most), _stack(tokens, most), present)


@dataclass(frozen=True)
class AssignmentCosts:
    """How much each part weighs when queries are assigned."""

    token: float = 1.0
    box: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True)
class Assignment:
    query: Tensor  # (B,T): the query that answers for each target
    matched: Tensor  # (B,T), false at padding, where `query` means nothing

    def pick(self, predicted: Tensor) -> Tensor:
        """(B,Q,...) to what was predicted for each target, (B,T,...)."""
        rows = torch.arange(len(predicted), device=predicted.device)[:, None]
        return predicted[rows, self.query]

    def one_hot(self, num_queries: int) -> Tensor:
        """(B,T,Q), true where the query answers for the target."""
        queries = torch.arange(num_queries, device=self.query.device)
        return (self.query[..., None] == queries) & self.matched[..., None]


@torch.no_grad()
def assign(logits: Tensor, boxes: Tensor, targets: Targets, costs: AssignmentCosts | None = None) -> Assignment:
    """Hungarian assignment of logits (B,Q,S) and boxes (B,Q,4). One transfer from the device for the whole batch."""
    costs = costs or AssignmentCosts()
    cost = assignment_cost(logits, boxes, targets.boxes, targets.tokens, costs)
    packed = torch.cat([cost, targets.present[:, None].to(cost)], dim=1).cpu().numpy()
    query = torch.from_numpy(np.stack([_assign_one(one[:-1], one[-1] > 0) for one in packed])).to(boxes.device)
    return Assignment(query.clamp(min=0), query >= 0)


@full_precision
def assignment_cost(
    logits: Tensor, boxes: Tensor, target_boxes: Tensor, target_tokens: Tensor, costs: AssignmentCosts
) -> Tensor:
    """(B,Q,T): -sum p m, L1 distance and -GIoU, weighted."""
    token = -logits.softmax(dim=-1) @ target_tokens.to(logits).mT
    box = (boxes[:, :, None] - target_boxes[:, None]).abs().sum(dim=-1)
    overlap = -pairwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
    return costs.token * token + costs.box * box + costs.giou * overlap


def _assign_one(cost: np.ndarray, present: np.ndarray) -> np.ndarray:
    """cost (Q,T) and present (T,) to the query of each target, -1 where it has none."""
    query = np.full(len(present), -1, dtype=np.int64)
    (own,) = np.nonzero(present)
    # A diverged prediction must not stop the run here: the loss shows it.
    finite = np.nan_to_num(cost[:, own], nan=1e6, posinf=1e6, neginf=-1e6)
    rows, columns = linear_sum_assignment(finite)
    query[own[columns]] = rows
    return query


def _stack(parts: list[Tensor], length: int) -> Tensor:
    """(T_i,...) each to (B,length,...), filled up with zeros."""
    return torch.stack([torch.cat([part, part.new_zeros(length - len(part), *part.shape[1:])]) for part in parts])
