"""The adapter: from a feature of the frozen model to matching vectors and grounded boxes (section 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dpt.adapter.config import AdapterConfig
from dpt.adapter.embeddings import FeatureNorm, LearnedPositionEmbedding, SinePositionEmbedding, TimestepEmbedding
from dpt.adapter.phrase_encoder import PretrainedPhraseEncoder
from dpt.adapter.transformer import Transformer
from dpt.backbone.device import full_precision, matmul_autocast


@dataclass(frozen=True)
class GroundingOutput:
    """What the grounding queries predict."""

    logits: Tensor  # (B,Q,slots+1): which token of the expression; the last class is no object
    boxes: Tensor  # (B,Q,4): cx, cy, w, h relative to the image
    queries: Tensor | None  # (B,Q,K) of unit length, to compare with `Adapter.align_text`


@dataclass(frozen=True)
class AdapterOutput:
    matching: Tensor  # (B,M,D): one vector per matching query, in the space of `Condition.match`
    grounding: GroundingOutput


class BoxHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 4)])

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.relu(layer(x))
        return torch.sigmoid(last(x))


class Adapter(nn.Module):
    """Module names are those of the published checkpoint: its keys are this state dict's keys.

    Weights and arithmetic are float32 whatever the feature's dtype and the autocast around it. Only the matrix
    products of encoder and decoder run in `matmul_dtype`.
    """

    text_encoder: PretrainedPhraseEncoder | None
    """The encoder of expressions, if it was trained together with the adapter."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.matmul_dtype = torch.float32
        self.register_module("text_encoder", None)
        d = config.hidden_dim
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.transformer = Transformer(config)
        self.query_embed = nn.Embedding(config.num_queries, d)
        if config.fused_channels is not None:
            projections = (nn.Conv2d(channels, config.fused_channels, 1) for channels in config.feature_channels)
            self.fusion_proj = nn.ModuleList(projections)
        self.input_proj = nn.Conv2d(config.fused_channels or sum(config.feature_channels), d, 1)
        sine = config.position_embedding == "sine"
        self.position_embedding = SinePositionEmbedding(config) if sine else LearnedPositionEmbedding(config)
        self.timestep_embedding = TimestepEmbedding(config)
        self.map_to_clip = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, config.text_width))
        self.class_embed = nn.Linear(d, config.token_slots + 1)
        self.bbox_embed = BoxHead(d)
        if config.contrastive_align_loss:
            self.contrastive_align_projection_image = nn.Linear(d, config.contrastive_loss_hdim)
            self.contrastive_align_projection_text = nn.Linear(config.phrase_width, config.contrastive_loss_hdim)
        self.feature_norm = FeatureNorm(config) if config.feature_norm else None

    @full_precision
    def forward(self, features: Tensor, t: Tensor) -> AdapterOutput:
        """Matching and grounding, for features (B,C,h,w) and t (B,)."""
        decoded = self.decode(features, t)
        return AdapterOutput(self.matching_head(decoded), self.grounding_head(decoded))

    @full_precision
    def match(self, features: Tensor, t: Tensor) -> Tensor:
        """Only the matching vectors (B,M,D). Skips the grounding queries where that changes nothing."""
        return self.matching_head(self.decode(features, t, self._queries(self._matching)))

    @full_precision
    def ground(self, features: Tensor, t: Tensor) -> GroundingOutput:
        """Only the grounding. Skips the matching queries where that changes nothing."""
        return self.grounding_head(self.decode(features, t, self._queries(self._grounding)))

    @full_precision
    def decode(self, features: Tensor, t: Tensor, queries: Tensor | None = None) -> Tensor:
        """The last decoder layer's output (B,Q,d) for features (B,C,h,w), for all queries or those given."""
        return self._decode(*self._encode(features, t), queries)

    @full_precision
    def decode_split(self, features: Tensor, t: Tensor, num_grounding: int) -> tuple[Tensor, Tensor]:
        """Decode the first `num_grounding` rows for `grounding_head` (G,Q,d), the others for `matching_head`.

        Queries that the head does not use are skipped where that changes nothing.
        """
        memory, embeddings = self._encode(features, t)
        if not self._queries_are_independent:
            decoded = self._decode(memory, embeddings, None)
            return decoded[:num_grounding], decoded[num_grounding:]
        return (
            self._decode(memory[:num_grounding], embeddings[:num_grounding], self._queries(self._grounding)),
            self._decode(memory[num_grounding:], embeddings[num_grounding:], self._queries(self._matching)),
        )

    def _encode(self, features: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's output and its position and timestep embeddings, each (B,h*w,d)."""
        if self.feature_norm is not None:
            features = self.feature_norm(features, t)
        tokens, embeddings = self.project(features), self.embeddings(t, *features.shape[-2:])
        if self.config.code_placement == "sequence":
            tokens = tokens + embeddings
        with matmul_autocast(self.matmul_dtype, features.device.type):
            return self.transformer.encoder(tokens, embeddings), embeddings

    def _decode(self, memory: Tensor, embeddings: Tensor, queries: Tensor | None) -> Tensor:
        positions = (self.query_embed.weight if queries is None else queries).expand(len(memory), -1, -1)
        with matmul_autocast(self.matmul_dtype, memory.device.type):
            decoded: Tensor = self.transformer.decoder(positions, memory, embeddings)
        return decoded.float()

    @full_precision
    def matching_head(self, decoded: Tensor) -> Tensor:
        """h_i of the matching queries, the first of (B,Q,d)."""
        vectors: Tensor = self.map_to_clip(decoded[:, : self.config.num_queries_matching])
        return vectors

    @full_precision
    def grounding_head(self, decoded: Tensor) -> GroundingOutput:
        """Predictions of the grounding queries, the last of (B,Q,d)."""
        queries = decoded[:, decoded.shape[1] - self.config.num_queries_rec :]
        align = None
        if self.config.contrastive_align_loss:
            align = normalize(self.contrastive_align_projection_image(queries), dim=-1)
        return GroundingOutput(self.class_embed(queries), self.bbox_embed(queries), align)

    @full_precision
    def align_text(self, states: Tensor) -> Tensor:
        """Unit vectors (B,L,K) of the expressions' token states (B,L,D)."""
        return normalize(self.contrastive_align_projection_text(states), dim=-1)

    @full_precision
    def project(self, features: Tensor) -> Tensor:
        """X = Conv1x1(F) as tokens (B,h*w,d)."""
        if self.config.fused_channels is not None:
            maps = features.split(self.config.feature_channels, dim=1)
            features = torch.stack([conv(x) for conv, x in zip(self.fusion_proj, maps, strict=True)]).sum(dim=0)
        tokens: Tensor = self.input_proj(features).flatten(2).transpose(1, 2)
        # Matrix products are slow on the transposed view.
        return tokens.contiguous()

    def embeddings(self, t: Tensor, height: int, width: int) -> Tensor:
        """E = P(h,w) + tau(t), (B,h*w,d)."""
        positions = self.position_embedding(height, width, t.device)
        embeddings: Tensor = positions[None] + self.timestep_embedding(t)[:, None]
        return embeddings

    @property
    def scale(self) -> Tensor:
        """kappa = exp(logit_scale), learned and not clamped."""
        return self.logit_scale.exp()

    @property
    def _matching(self) -> slice:
        return slice(0, self.config.num_queries_matching)

    @property
    def _grounding(self) -> slice:
        return slice(self.config.num_queries_matching, None)

    def _queries(self, needed: slice) -> Tensor | None:
        """The query embeddings to decode; None is all, where the others cannot be skipped."""
        return self.query_embed.weight[needed] if self._queries_are_independent else None

    @property
    def _queries_are_independent(self) -> bool:
        """Whether no query influences another: with one decoder layer and no dropout.

        Decoding starts from zeros, so in the first layer's self-attention all values are equal. Dropout of attention
        weights breaks that, and so does a second layer.
        """
        dropout = self.training and self.config.dropout > 0
        return self.config.dec_layers == 1 and not dropout
