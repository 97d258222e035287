"""Joint attention over a text that ends in many equal tokens, computed for one of them.

Without a third text encoder SD3's pipeline appends 256 zero states to every prompt. SD3 gives text no positions, so
these tokens stay equal in every layer: one stands for all of them if its attention scores are raised by the logarithm
of their number. The result differs from the pipeline's by rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class RepeatedLastToken:
    """An attention processor of SD3's blocks, in which the last text token stands for `count` equal ones.

    A text of more than `count` tokens holds them all, as the stock pipeline gives it, and is attended to as it is.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None
    ) -> tuple[Tensor, Tensor]:
        image, text = hidden_states, encoder_hidden_states
        queries = _by_head(attn, (image, attn.to_q, attn.norm_q), (text, attn.add_q_proj, attn.norm_added_q))
        keys = _by_head(attn, (image, attn.to_k, attn.norm_k), (text, attn.add_k_proj, attn.norm_added_k))
        values = _by_head(attn, (image, attn.to_v, None), (text, attn.add_v_proj, None))
        raised = None
        if text.shape[1] <= self.count:
            raised = keys.new_zeros(1, 1, 1, keys.shape[2])
            raised[..., -1] = math.log(self.count)
        attended = attend(queries, keys, values, raised)
        attended = attended.transpose(1, 2).flatten(2)
        image, text = attended[:, : image.shape[1]], attended[:, image.shape[1] :]
        return attn.to_out[1](attn.to_out[0](image)), text if attn.context_pre_only else attn.to_add_out(text)


def attend(queries: Tensor, keys: Tensor, values: Tensor, raised: Tensor | None) -> Tensor:
    """Attention with `raised` added to the scores; for gradients on a CPU written out, since the fused one is slow."""
    if queries.device.type != "cpu" or not (torch.is_grad_enabled() and queries.requires_grad):
        return scaled_dot_product_attention(queries, keys, values, attn_mask=raised)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    if raised is not None:
        scores = scores + raised
    return scores.softmax(dim=-1) @ values


def _by_head(attn: Any, *streams: tuple[Tensor, Any, Any]) -> Tensor:
    """The projections of image and text tokens, normalised and joined, (B,heads,N+L,width)."""
    parts = []
    for tokens, projection, norm in streams:
        heads = projection(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        parts.append(heads if norm is None else norm(heads))
    return torch.cat(parts, dim=2)


def merge_equal_tokens(transformer: Any, count: int) -> None:
    """From now on the transformer takes one token in the place of the `count` equal ones at the end of the text."""
    for block in transformer.transformer_blocks:
        block.attn.set_processor(RepeatedLastToken(count))
