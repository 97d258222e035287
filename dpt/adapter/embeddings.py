"""Position and timestep embeddings, which attention adds to queries and keys (section 1.1, step 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from dpt.adapter.config import AdapterConfig
from dpt.errors import UserError

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
