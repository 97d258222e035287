"""The losses of matching, grounding, denoising and preference, and boxes. None of them synchronises with the device.

Matching: a score, and two contrastive losses over three candidates each (sections 1.3 and 2.2). Grounding: each loss is
a sum over targets divided by `num_boxes`, the number of boxes in the global batch per process (at least one), which the
training loop supplies. Denoising: the mean square error, and its min-SNR weights (arXiv 2303.09556). Preference: a
batch holds the images of all groups in one row; `sizes` says how many belong to each group. Groups are padded with
scores that no softmax sees. Boxes are (cx, cy, w, h) or (x0, y0, x1, y1); empty ones have IoU 0, and a NaN affects
only its own box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import log_softmax, normalize, pad
from torch.nn.utils.rnn import pad_sequence

from dpt.backbone.device import full_precision
from dpt.errors import UserError

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


@full_precision
def match_score(vectors: Tensor, text: Tensor) -> Tensor:
    """s(z_t, y) = max over the matching queries i of cos(h_i, c(y)): (...,M,D) and (...,D) to (...)."""
    return match_cosines(vectors, text).amax(dim=-1)


@full_precision
def match_cosines(vectors: Tensor, text: Tensor) -> Tensor:
    """cos(h_i, c(y)) for every query: (...,M,D) and (...,D) to (...,M)."""
    return (normalize(vectors, dim=-1) * normalize(text, dim=-1)[..., None, :]).sum(dim=-1)


@full_precision
def image_to_text_loss(vectors: Tensor, texts: Tensor, scale: Tensor | float) -> Tensor:
    """L_i2t: one image under K captions, (B,K,M,D) against (B,K,D); the first caption is the true one."""
    return first_is_true_loss(match_score(vectors, texts), scale)


@full_precision
def text_to_image_loss(vectors: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """L_t2i: K images under one caption, (B,K,M,D) against (B,D); the first image is the true one."""
    return first_is_true_loss(match_score(vectors, text[:, None]), scale)


@full_precision
def first_is_true_loss(scores: Tensor, scale: Tensor | float) -> Tensor:
    """-log softmax of the first of K scaled scores (B,K), averaged over the batch."""
    return -log_softmax(scale * scores, dim=-1)[:, 0].mean()


EOS_COEF = 0.1

ALIGN_TEMPERATURE = 0.07


@full_precision
def token_loss(
    logits: Tensor, targets: Targets, assignment: Assignment, num_boxes: Tensor | float, eos_coef: float = EOS_COEF
) -> Tensor:
    """L_ce = 1/N sum_q w_q (-sum target log p), for logits (B,Q,S).

    The target of an assigned query is its phrase's token map, with w = 1; of all others, no object (the last class),
    with w = eos_coef.
    """
    log_p = logits.log_softmax(dim=-1)
    assigned = assignment.one_hot(logits.shape[1]).to(log_p)  # (B,T,Q)
    unassigned = assigned.sum(dim=1) == 0  # (B,Q)
    target = assigned.mT @ targets.tokens.to(log_p)
    target[..., -1] += unassigned
    weight = unassigned * eos_coef + ~unassigned
    return (weight * -(target * log_p).sum(dim=-1)).sum() / num_boxes


@full_precision
def box_loss(boxes: Tensor, targets: Targets, assignment: Assignment, num_boxes: Tensor | float) -> Tensor:
    """L_box = 1/N sum L1, for boxes (B,Q,4) as cx, cy, w, h."""
    distance = (assignment.pick(boxes) - targets.boxes.to(boxes)).abs().sum(dim=-1)
    return _sum_where(assignment.matched, distance) / num_boxes


@full_precision
def giou_loss(boxes: Tensor, targets: Targets, assignment: Assignment, num_boxes: Tensor | float) -> Tensor:
    """L_giou = 1/N sum (1 - GIoU), for boxes (B,Q,4) as cx, cy, w, h."""
    overlap = giou(cxcywh_to_xyxy(assignment.pick(boxes)), cxcywh_to_xyxy(targets.boxes.to(boxes)))
    return _sum_where(assignment.matched, 1 - overlap) / num_boxes


@full_precision
def contrastive_align_loss(
    queries: Tensor,
    tokens: Tensor,
    targets: Targets,
    assignment: Assignment,
    num_boxes: Tensor | float,
    temperature: float = ALIGN_TEMPERATURE,
    token_mask: Tensor | None = None,
) -> Tensor:
    """L_align = 1/2N (A + B), for queries (B,Q,K) and tokens (B,L,K) of unit length.

    A sums over the queries that have positive tokens: -mean sim over those + logsumexp sim over all tokens.
    B exchanges queries and tokens. The published loss counts padding among all tokens; given `token_mask` (B,L), false
    at padding, an example's loss does not depend on the longest of its batch.
    """
    sim = queries @ tokens.mT / temperature  # (B,Q,L)
    positive = _positive_pairs(targets.tokens, assignment, *sim.shape[1:])
    candidates = sim if token_mask is None else sim.masked_fill(~token_mask[:, None], float("-inf"))
    by_query = _contrast(sim, candidates, positive, over=2)
    by_token = _contrast(sim, sim, positive, over=1)
    return (by_query + by_token) / 2 / num_boxes


@full_precision
@torch.no_grad()
def cardinality_error(logits: Tensor, targets: Targets) -> Tensor:
    """Difference between the numbers of predicted objects and of targets. A metric, not a loss."""
    predicted = (logits.argmax(dim=-1) != logits.shape[-1] - 1).sum(dim=1)
    return (predicted - targets.present.sum(dim=1)).abs().float().mean()


def _positive_pairs(tokens: Tensor, assignment: Assignment, num_queries: int, length: int) -> Tensor:
    """(B,Q,L), true where the query is assigned to a phrase that contains the token."""
    slots = tokens.shape[-1]
    in_phrase = pad(tokens > 0, (0, max(0, length - slots)))[..., :length]  # (B,T,L)
    return (assignment.one_hot(num_queries)[..., None] & in_phrase[:, :, None]).any(dim=1)


def _contrast(sim: Tensor, candidates: Tensor, positive: Tensor, over: int) -> Tensor:
    mean = sim.masked_fill(~positive, 0).sum(dim=over) / positive.sum(dim=over).clamp(min=1)
    return _sum_where(positive.any(dim=over), candidates.logsumexp(dim=over) - mean)


def _sum_where(kept: Tensor, values: Tensor) -> Tensor:
    return values.masked_fill(~kept, 0).sum()


@full_precision
def denoising_loss(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """L_mse: mean of (predicted - target)^2 over each sample (B,...), then over the batch, weighted by (B,)."""
    by_sample = (predicted - target).square().flatten(1).mean(dim=1)
    return (by_sample if weight is None else weight * by_sample).mean()


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """The weight min(snr, gamma) of the error in z_0, as a weight of the error in what is predicted.

    An error in v is larger than the one in z_0 by (snr + 1), one in epsilon by snr.
    """
    match prediction_type:
        case "epsilon":
            return (gamma / snr).clamp(max=1)
        case "v_prediction":
            return snr.clamp(max=gamma) / (snr + 1)
        case "sample":
            return snr.clamp(max=gamma)
        case _:
            raise UserError(f"min-SNR weighting is not known for the prediction type {prediction_type!r}")


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
    """1 if the image of highest score is (one of) the best, else 0; for a tie, the fraction that is."""
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
