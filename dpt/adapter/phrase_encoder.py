"""Encoders of referring expressions: token states, and the characters that each token covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dpt.backbone import Backbone, Condition
from dpt.backbone.hf_model import open_hf_model
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
