"""Boxes as (cx, cy, w, h) or (x0, y0, x1, y1). Empty boxes have IoU 0; a NaN affects only its own box."""

from __future__ import annotations

import torch
from torch import Tensor

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
