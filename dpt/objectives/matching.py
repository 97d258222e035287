"""Image-text matching: the score, and two contrastive losses over three candidates each (sections 1.3 and 2.2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from dpt.backbone.device import full_precision


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
