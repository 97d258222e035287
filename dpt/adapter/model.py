"""The adapter: from a feature of the frozen model, and encoded phrases, to matching vectors and grounded boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dpt.adapter.transformer import (
    AdapterConfig,
    FeatureNorm,
    LearnedPositionEmbedding,
    SinePositionEmbedding,
    TimestepEmbedding,
    Transformer,
)
from dpt.backbone import Backbone, Condition
from dpt.backbone.device import full_precision, matmul_autocast
from dpt.backbone.opening import open_hf_model
from dpt.errors import UserError

OF_BACKBONE = "backbone"

POOLER = "pooler."


@dataclass(frozen=True)
class EncodedPhrases:
    """Encoded expressions, padded to the longest."""

    states: Tensor  # (B,L,D)
    mask: Tensor  # (B,L), false at padding
    offsets: Tensor  # (B,L,2) on the CPU: the characters [begin, end) of each token; empty at special tokens


class PhraseEncoder(Protocol):
    """Frozen, unless `PretrainedPhraseEncoder.unfreeze` makes it part of the adapter."""

    name: str
    width: int

    def encode(self, captions: Sequence[str]) -> EncodedPhrases: ...


def open_phrase_encoder(text_encoder_type: str, backbone: Backbone) -> PhraseEncoder:
    """From `backbone` for the frozen model's own text encoder, or a folder or hub id like `roberta-base`."""
    if text_encoder_type == OF_BACKBONE:
        return BackbonePhraseEncoder(backbone)
    return PretrainedPhraseEncoder.open(text_encoder_type, backbone.device)


class BackbonePhraseEncoder:
    """The frozen model's own text encoder, token by token."""

    name = OF_BACKBONE

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.width = backbone.text_width

    def encode(self, captions: Sequence[str], condition: Condition | None = None) -> EncodedPhrases:
        """`condition`: of the same captions, if they are encoded already."""
        tokens = self.backbone.tokenize(captions)
        if condition is None:
            condition = self.backbone.encode_text(captions)
        # Attention is causal: the padding cut off here changed nothing.
        states = condition.states[:, : tokens.attention_mask.shape[1]]
        return EncodedPhrases(states.float(), tokens.attention_mask.bool().to(states.device), tokens.offset_mapping)


class PretrainedPhraseEncoder(nn.Module):
    """Any encoder of transformers; `roberta-base` in the published recipe."""

    def __init__(self, name: str, tokenizer: Any, encoder: Any) -> None:
        super().__init__()
        self.name = name
        self.tokenizer = tokenizer
        self.encoder = encoder.eval().requires_grad_(False)
        self.width = int(encoder.config.hidden_size)

    @classmethod
    def open(cls, path_or_hub_id: str | Path, device: str | torch.device = "cpu") -> PretrainedPhraseEncoder:
        from transformers import AutoModel, AutoTokenizer

        folder = open_hf_model(str(path_or_hub_id), None, "text encoder", without_owner=True)
        encoder = folder.load_model(AutoModel, unused=(POOLER,))
        tokenizer = folder.load(AutoTokenizer)
        if not tokenizer.is_fast:
            raise UserError(f"the tokenizer of {path_or_hub_id} cannot map tokens to characters, which grounding needs")
        return cls(str(path_or_hub_id), tokenizer, encoder.to(device))

    def unfreeze(self) -> PretrainedPhraseEncoder:
        """Train all of it but the pooler, which token states do not pass through."""
        for name, p in self.encoder.named_parameters():
            p.requires_grad_(not name.startswith(POOLER))
        return self

    def save(self, folder: Path) -> None:
        """In the layout that `open` reads."""
        self.encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def encode(self, captions: Sequence[str]) -> EncodedPhrases:
        tokens = self.tokenizer(
            list(captions),
            padding="longest",
            max_length=self._max_length,
            truncation=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        device = self.encoder.device
        mask = tokens.attention_mask.to(device)
        states = self.encoder(tokens.input_ids.to(device), attention_mask=mask).last_hidden_state
        return EncodedPhrases(states.float(), mask.bool(), tokens.offset_mapping)

    @property
    def _max_length(self) -> int:
        """Tokens that fit. RoBERTa numbers positions from the padding id + 1."""
        embeddings = getattr(self.encoder, "embeddings", None)
        reserved = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        positions = self.encoder.config.max_position_embeddings - (0 if reserved is None else reserved + 1)
        return int(min(self.tokenizer.model_max_length, positions))


Span = tuple[int, int]

TOKEN_SLOTS = 255


def token_map(
    offsets: Tensor, targets: Sequence[Sequence[Span]], slots: int = TOKEN_SLOTS, normalised: bool = True
) -> Tensor:
    """(T,slots+1) for T phrases, each given by its character spans [begin, end) in one caption.

    `offsets` (L,2) are the characters of each token. A token belongs to a span if they overlap, so a span that begins
    or ends on a space, or inside a token, still gets its tokens. Rows sum to one (or are 0/1 if not normalised); the
    row of a truncated phrase is empty. The last column, no object, is zero.
    """
    tokens = offsets[:slots]
    begin, end = tokens[:, 0], tokens[:, 1]
    rows = torch.zeros(len(targets), slots + 1)
    for row, spans in zip(rows, targets, strict=True):
        for first, last in spans:
            row[: len(tokens)][(begin < end) & (begin < last) & (end > first)] = 1
    return rows / rows.sum(dim=1, keepdim=True).clamp(min=1) if normalised else rows


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
