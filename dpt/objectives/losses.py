"""The losses of matching, grounding and denoising. None of them synchronises with the device.

Matching: a score, and two contrastive losses over three candidates each (sections 1.3 and 2.2). Grounding: each loss is
a sum over targets divided by `num_boxes`, the number of boxes in the global batch per process (at least one), which the
training loop supplies. Denoising: the mean square error, and its min-SNR weights (arXiv 2303.09556).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize, pad

from dpt.backbone.device import full_precision
from dpt.errors import UserError
from dpt.objectives.boxes import Assignment, Targets, cxcywh_to_xyxy, giou


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
