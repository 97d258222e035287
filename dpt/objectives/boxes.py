"""Boxes as (cx, cy, w, h) or (x0, y0, x1, y1). Empty boxes have IoU 0; a NaN affects only its own box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dpt.backbone.device import full_precision

# Far below one pixel, relative to the image's area.
_NO_AREA = 1e-12


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Of xyxy boxes (...,4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: Tensor, b: Tensor) -> Tensor:
    """|A ∩ B| / |A ∪ B| of xyxy boxes (...,4) that broadcast."""
    overlap, union = _overlap_and_union(a, b)
    return _ratio(overlap, union)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """IoU - |C - A ∪ B| / |C|, with C the smallest box around both, of xyxy boxes (...,4) that broadcast."""
    overlap, union = _overlap_and_union(a, b)
    low = torch.minimum(a[..., :2], b[..., :2])
    high = torch.maximum(a[..., 2:], b[..., 2:])
    enclosing = (high - low).prod(dim=-1)
    return _ratio(overlap, union) - _ratio(enclosing - union, enclosing)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """(...,N,4) and (...,M,4) to (...,N,M)."""
    return iou(a[..., :, None, :], b[..., None, :, :])


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """(...,N,4) and (...,M,4) to (...,N,M)."""
    return giou(a[..., :, None, :], b[..., None, :, :])


def _overlap_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clamp(min=0).prod(dim=-1)
    return overlap, area(a) + area(b) - overlap


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole; 0, with gradient 0, where the whole is 0."""
    empty = whole.abs() <= _NO_AREA
    return torch.where(empty, 0.0, part) / torch.where(empty, 1.0, whole)


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
