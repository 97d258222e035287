"""The adapter's config, its embeddings, and its encoder and decoder (section 1.1, steps 3 to 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu, softmax

from dpt.backbone import Backbone
from dpt.errors import UserError

POSITIONS = ("sine", "learned")

PLACEMENTS = ("keys", "sequence")

PUBLISHED_POSITION_ROWS = 50


@dataclass(frozen=True)
class AdapterConfig:
    """Defaults are the published values for Stable Diffusion 2.1; fields with a published flag have its name."""

    unet_feature: str = "up1"
    feature_channels: tuple[int, ...] = (1280,)
    """Channels of each map of the feature."""
    fused_channels: int | None = None
    """The C of `all-C-S`; None where maps are concatenated."""
    text_width: int = 1024
    """Width of `Condition.match`, which matching compares with."""
    text_encoder_type: str = "roberta-base"
    """Encodes referring expressions: a folder, a hub id, or `backbone` for the frozen model's own text encoder."""
    phrase_width: int = 768
    """Width of that encoder's token states."""
    hidden_dim: int = 256
    nheads: int = 8
    enc_layers: int = 1
    dec_layers: int = 1
    dim_feedforward: int = 2048
    dropout: float = 0.1
    pre_norm: bool = False
    position_embedding: str = "sine"
    position_rows: int = PUBLISHED_POSITION_ROWS
    """Rows, and columns, of learned positions."""
    code_placement: str = "keys"
    """Where position and timestep embeddings are added: `keys` to queries and keys (published code), `sequence` to the
    feature sequence too and so to the values (the paper's figure)."""
    num_queries_matching: int = 10
    num_queries_rec: int = 100
    token_slots: int = 255
    """Tokens of an expression that a query can point at; one more class is no object."""
    contrastive_align_loss: bool = True
    contrastive_loss_hdim: int = 64
    feature_norm: bool = False
    """Normalise the feature over its channels, then scale and shift it by the timestep, before it is projected."""

    def __post_init__(self) -> None:
        if self.position_embedding not in POSITIONS:
            raise UserError(f"position_embedding is one of {', '.join(POSITIONS)}, not {self.position_embedding!r}")
        if self.code_placement not in PLACEMENTS:
            raise UserError(f"code_placement is one of {', '.join(PLACEMENTS)}, not {self.code_placement!r}")
        if self.nheads < 1:
            raise UserError(f"nheads must be at least 1, not {self.nheads}")
        if self.hidden_dim % 4 or self.hidden_dim % self.nheads:
            raise UserError(f"hidden_dim must be divisible by 4 and by nheads ({self.nheads}), not {self.hidden_dim}")
        at_least_one = ["hidden_dim", "dim_feedforward", "dec_layers", "num_queries_matching", "token_slots"]
        if self.contrastive_align_loss:
            at_least_one.append("contrastive_loss_hdim")
        for name in (*at_least_one, "text_width", "phrase_width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("enc_layers", "num_queries_rec"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} cannot be negative")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is at least 0 and below 1, not {self.dropout}")

    @property
    def num_queries(self) -> int:
        return self.num_queries_matching + self.num_queries_rec


def config_for(backbone: Backbone, feature: str, phrase_width: int, **overrides: Any) -> AdapterConfig:
    """The config of an adapter that reads this feature of this model.

    Learned positions get the published 50 rows, or as many as the feature has at the model's default size.
    """
    spec = backbone.feature_spec(feature)
    derived = {
        "feature_channels": spec.channels,
        "fused_channels": spec.fused_channels,
        "position_rows": max(PUBLISHED_POSITION_ROWS, *backbone.feature_grid(feature)),
        "text_width": backbone.match_width,
        "phrase_width": phrase_width,
        "feature_norm": spec.is_tokens,
    }
    return AdapterConfig(feature, **{**derived, **overrides})


def check_fits(config: AdapterConfig, backbone: Backbone) -> None:
    """Refuse an adapter whose shapes belong to another model."""
    channels = sum(backbone.feature_spec(config.unet_feature).channels)
    if channels != sum(config.feature_channels):
        raise UserError(
            f"the adapter does not fit the model: it reads {config.unet_feature} with "
            f"{sum(config.feature_channels)} channels, and the model's has {channels}"
        )
    if backbone.match_width != config.text_width:
        raise UserError(
            f"the adapter does not fit the model: it matches text {config.text_width} wide, "
            f"and the text encoder writes {backbone.match_width}"
        )


TEMPERATURE = 10000.0

NORM_EPS = 1e-6


class SinePositionEmbedding(nn.Module):
    """P(h,w): y in the first half of the channels, x in the second; sine on even, cosine on odd channels."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.axis_width = config.hidden_dim // 2

    def forward(self, height: int, width: int, device: torch.device) -> Tensor:
        y, x = self._axis(height, device), self._axis(width, device)  # (h,d/2), (w,d/2)
        return _grid(y, x)

    def _axis(self, length: int, device: torch.device) -> Tensor:
        position = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        angle = position / (length + 1e-6) * 2 * math.pi
        pair = torch.arange(self.axis_width, device=device) // 2
        phase = angle[:, None] / TEMPERATURE ** (2 * pair / self.axis_width)
        even = torch.arange(self.axis_width, device=device) % 2 == 0
        return torch.where(even, phase.sin(), phase.cos())


class LearnedPositionEmbedding(nn.Module):
    """A trained vector per column and per row; x in the first half, as published."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(config.position_rows, config.hidden_dim // 2)
        self.col_embed = nn.Embedding(config.position_rows, config.hidden_dim // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, height: int, width: int, device: torch.device) -> Tensor:
        rows = self.row_embed.num_embeddings
        if max(height, width) > rows:
            raise UserError(
                f"learned positions reach {rows} x {rows}, but the feature is {height} x {width}: "
                f"use sine positions, or set position_rows to {max(height, width)}"
            )
        y, x = self.row_embed.weight[:height], self.col_embed.weight[:width]
        return _grid(y, x).roll(y.shape[1], dims=-1)


def _grid(y: Tensor, x: Tensor) -> Tensor:
    """(h,d/2) and (w,d/2) to (h*w,d), y half first."""
    height, width = len(y), len(x)
    return torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], dim=-1).flatten(0, 1)


class TimestepEmbedding(nn.Module):
    """tau(t) = W2 SiLU(W1 phi(t)). The inner module only carries the published names."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.width = config.hidden_dim
        first, second = nn.Linear(self.width, 4 * self.width), nn.Linear(4 * self.width, self.width)
        self.time_embedding = nn.ModuleDict({"linear_1": first, "linear_2": second})

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) to (B,d)."""
        hidden = silu(self.time_embedding["linear_1"](sinusoid(t, self.width)))
        embedded: Tensor = self.time_embedding["linear_2"](hidden)
        return embedded


class FeatureNorm(nn.Module):
    """RMSNorm over the channels of each map, then FiLM by the timestep, which starts as the identity."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.channels, self.width = config.feature_channels, config.hidden_dim
        self.film = nn.Linear(self.width, 2 * sum(self.channels))
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, features: Tensor, t: Tensor) -> Tensor:
        """Features (B,C,h,w) and t (B,) to (B,C,h,w)."""
        maps = features.split(self.channels, dim=1)
        normed = torch.cat([x * (x.square().mean(dim=1, keepdim=True) + NORM_EPS).rsqrt() for x in maps], dim=1)
        scale, shift = self.film(sinusoid(t, self.width))[:, :, None, None].chunk(2, dim=1)
        return normed * (1 + scale) + shift


def sinusoid(t: Tensor, width: int) -> Tensor:
    """phi(t): cosines first, frequencies 1 … 1/10000 in `width / 2` geometric steps."""
    half = width // 2
    frequency = torch.exp(-math.log(TEMPERATURE) / half * torch.arange(half, device=t.device, dtype=torch.float32))
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


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
