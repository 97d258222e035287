"""From the characters of a phrase to the tokens that a query should point at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Span = tuple[int, int]
TOKEN_SLOTS = 255


def token_map(
    offsets: Tensor, targets: Sequence[Sequence[Span]], slots: int = TOKEN_SLOTS, normalised: bool = True
) -> Tensor:
    """(T,slots+1) for T phrases, each given by its spans of characters [begin, end) in one caption.

    offsets (L,2) are the characters each token of the caption spells. A token belongs to a span if they overlap,
    so a span that begins or ends on a space, or inside a token, still finds its tokens. Rows sum to one (or are
    0/1 where not normalised); the row of a phrase that was cut off is empty. The last column, no object, is zero.
    """
    spelled = offsets[:slots]
    begin, end = spelled[:, 0], spelled[:, 1]
    rows = torch.zeros(len(targets), slots + 1)
    for row, spans in zip(rows, targets, strict=True):
        for first, last in spans:
            row[: len(spelled)][(begin < end) & (begin < last) & (end > first)] = 1
    return rows / rows.sum(dim=1, keepdim=True).clamp(min=1) if normalised else rows
