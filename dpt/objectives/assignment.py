"""Hungarian assignment of queries to targets, image by image (section 2.2)."""

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
    """The boxes and phrases of each image, padded to the image with most."""

    boxes: Tensor  # (B,T,4): cx, cy, w, h
    tokens: Tensor  # (B,T,S): the token map of each target's phrase
    present: Tensor  # (B,T), false at padding

    def to(self, device: torch.device | str) -> Targets:
        return Targets(self.boxes.to(device), self.tokens.to(device), self.present.to(device))

    @staticmethod
    def pad(boxes: list[Tensor], tokens: list[Tensor]) -> Targets:
        """From the boxes (T_i,4) and token maps (T_i,S) of each image."""
        length = max(map(len, boxes), default=0)
        present = torch.stack([torch.arange(length) < len(own) for own in boxes])
        return Targets(_stack(boxes, length), _stack(tokens, length), present)


@dataclass(frozen=True)
class AssignmentCosts:
    """Weights of the parts of the assignment cost."""

    token: float = 1.0
    box: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True)
class Assignment:
    query: Tensor  # (B,T): the query assigned to each target
    matched: Tensor  # (B,T), false at padding, where `query` is meaningless

    def pick(self, predicted: Tensor) -> Tensor:
        """The predictions (B,Q,...) of the assigned queries, (B,T,...)."""
        rows = torch.arange(len(predicted), device=predicted.device)[:, None]
        return predicted[rows, self.query]

    def one_hot(self, num_queries: int) -> Tensor:
        """(B,T,Q), true where the query is assigned to the target."""
        queries = torch.arange(num_queries, device=self.query.device)
        return (self.query[..., None] == queries) & self.matched[..., None]


@torch.no_grad()
def assign(logits: Tensor, boxes: Tensor, targets: Targets, costs: AssignmentCosts | None = None) -> Assignment:
    """Hungarian assignment of logits (B,Q,S) and boxes (B,Q,4). One transfer from the device for the whole batch."""
    costs = costs or AssignmentCosts()
    cost = assignment_cost(logits, boxes, targets.boxes, targets.tokens, costs)
    packed = torch.cat([cost, targets.present[:, None].to(cost)], dim=1).cpu().numpy()
    query = torch.from_numpy(np.stack([_assign_image(p[:-1], p[-1] > 0) for p in packed])).to(boxes.device)
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


def _assign_image(cost: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The query of each target, or -1, from cost (Q,T) and present (T,)."""
    query = np.full(len(present), -1, dtype=np.int64)
    (own,) = np.nonzero(present)
    # A diverged prediction must not raise here: the loss reports it.
    finite = np.nan_to_num(cost[:, own], nan=1e6, posinf=1e6, neginf=-1e6)
    rows, columns = linear_sum_assignment(finite)
    query[own[columns]] = rows
    return query


def _stack(parts: list[Tensor], length: int) -> Tensor:
    """Stack (T_i,...) to (B,length,...), padded with zeros."""
    return torch.stack([torch.cat([part, part.new_zeros(length - len(part), *part.shape[1:])]) for part in parts])
