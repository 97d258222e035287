"""The adapter's config: enough to build it from a checkpoint, without the frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
