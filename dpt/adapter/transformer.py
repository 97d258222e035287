"""Encoder and decoder (section 1.1, steps 4 and 5): embeddings go to queries and keys, never to values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention, softmax

from dpt.adapter.config import AdapterConfig


class Attention(nn.MultiheadAttention):
    """Multi-head attention; query and key carry the embeddings, value does not."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config.hidden_dim, config.nheads, dropout=config.dropout, batch_first=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
        if self.training and self.dropout > 0:
            output: Tensor = super().forward(query, key, value, need_weights=False)[0]
            return output
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        inputs = zip((query, key, value), weights, biases, strict=True)
        projected = (linear(x, w, b) for x, w, b in inputs)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        attended: Tensor = self.out_proj(self._attend(q, k, v).transpose(1, 2).flatten(2))
        return attended

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k / sqrt(d)) v, each (B,heads,N,d)."""
        if q.device.type == "cpu" and q.dtype != torch.float32 and torch.is_grad_enabled():
            # On a CPU, fused attention is slow to differentiate in half precision (2x), and fast in float32.
            return softmax((q / self.head_dim**0.5) @ k.mT, dim=-1) @ v
        return scaled_dot_product_attention(q, k, v)


class Layer(nn.Module):
    """Residuals and feed-forward of both kinds of layer, with norms after each addition or before each sublayer."""

    def __init__(self, config: AdapterConfig, norms: int) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.self_attn = Attention(config)
        self.linear1 = nn.Linear(config.hidden_dim, config.dim_feedforward)
        self.linear2 = nn.Linear(config.dim_feedforward, config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        for number in range(1, norms + 1):
            self.add_module(f"norm{number}", nn.LayerNorm(config.hidden_dim))

    def sublayer_input(self, x: Tensor, norm: nn.Module) -> Tensor:
        normed: Tensor = norm(x) if self.pre_norm else x
        return normed

    def add(self, x: Tensor, output: Tensor, norm: nn.Module) -> Tensor:
        added = x + self.dropout(output)
        normed: Tensor = added if self.pre_norm else norm(added)
        return normed

    def feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.linear1(x)))
        output: Tensor = self.linear2(hidden)
        return output


class EncoderLayer(Layer):
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config, norms=2)

    def forward(self, x: Tensor, embeddings: Tensor) -> Tensor:
        """x, embeddings (B,N,d): q = k = X + E, v = X."""
        y = self.sublayer_input(x, self.norm1)
        positioned = y + embeddings
        x = self.add(x, self.self_attn(positioned, positioned, y), self.norm1)
        y = self.sublayer_input(x, self.norm2)
        return self.add(x, self.feed_forward(y), self.norm2)


class DecoderLayer(Layer):
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    norm3: nn.LayerNorm

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config, norms=3)
        self.multihead_attn = Attention(config)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, embeddings: Tensor) -> Tensor:
        """x, queries (B,Q,d); memory, embeddings (B,N,d)."""
        y = self.sublayer_input(x, self.norm1)
        positioned = y + queries
        x = self.add(x, self.self_attn(positioned, positioned, y), self.norm1)
        y = self.sublayer_input(x, self.norm2)
        x = self.add(x, self.multihead_attn(y + queries, memory + embeddings, memory), self.norm2)
        y = self.sublayer_input(x, self.norm3)
        return self.add(x, self.feed_forward(y), self.norm3)


class Encoder(nn.Module):
    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.enc_layers))
        self.norm = nn.LayerNorm(config.hidden_dim) if config.pre_norm else None

    def forward(self, x: Tensor, embeddings: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, embeddings)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.dec_layers))
        self.norm = nn.LayerNorm(config.hidden_dim)

    def forward(self, queries: Tensor, memory: Tensor, embeddings: Tensor) -> Tensor:
        """The last layer's output (B,Q,d) for query embeddings (B,Q,d); decoding starts from zeros."""
        x = torch.zeros_like(queries)
        for layer in self.layers:
            x = layer(x, queries, memory, embeddings)
        decoded: Tensor = self.norm(x)
        return decoded


class Transformer(nn.Module):
    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)
