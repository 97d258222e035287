"""A UNet's forward pass block by block, so that it can stop at a feature and go on from there later.

The blocks are called as `UNet2DConditionModel.forward` calls them; the numbers are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dpt.backbone.base import FeatureSpec
from dpt.backbone.unet_features import parse_feature
from dpt.errors import UserError


@dataclass(frozen=True)
class UNetPartialForward:
    """A forward pass of B rows after its first `done` blocks: everything that the remaining blocks need."""

    hidden: Tensor  # (B,C,h,w), output of block done - 1
    skips: tuple[Tensor, ...]  # each (B,C',h',w'); the up blocks consume them from the end
    embedding: Tensor  # (B,E), of the timestep
    states: Tensor  # (B,L,D), of the text
    done: int = 0
    pass_upsample_size: bool = False

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> UNetPartialForward:
        return replace(
            self,
            hidden=self.hidden[rows],
            skips=tuple(skip[rows] for skip in self.skips),
            embedding=self.embedding[rows],
            states=self.states[rows],
        )

    def concat(self, other: UNetPartialForward) -> UNetPartialForward:
        if self.done != other.done:
            raise ValueError(f"cannot join a forward pass after {self.done} blocks with one after {other.done}")
        return replace(
            self,
            hidden=torch.cat([self.hidden, other.hidden]),
            skips=tuple(map(torch.cat, zip(self.skips, other.skips, strict=True))),
            embedding=torch.cat([self.embedding, other.embedding]),
            states=torch.cat([self.states, other.states]),
        )

    def detached(self) -> UNetPartialForward:
        """Detach the last block's output and the skips past it."""
        skips = tuple(skip.detach() for skip in self.skips)
        return replace(self, hidden=self.hidden.detach(), skips=skips)


Added = Mapping[str, Tensor]
"""What a UNet with `addition_embed_type` takes beside latents, timestep and text states: `added_cond_kwargs`."""


def start_forward(
    unet: Any, latents: Tensor, t: Tensor | int, states: Tensor, added: Added | None = None
) -> UNetPartialForward:
    """Everything before the first block: latents (B,C,h,w), t (B,) or a number, text states (B,L,D)."""
    config = unet.config
    if config.class_embed_type or config.num_class_embeds or (config.addition_embed_type and added is None):
        raise UserError("this UNet takes more than latents, timestep and text; its features cannot be read")
    if config.center_input_sample:
        latents = 2 * latents - 1
    embedding = unet.time_embedding(unet.get_time_embed(sample=latents, timestep=t))
    if added is not None:
        embedding = embedding + unet.get_aug_embed(embedding, states, dict(added))
    if unet.time_embed_act is not None:
        embedding = unet.time_embed_act(embedding)
    states = unet.process_encoder_hidden_states(encoder_hidden_states=states, added_cond_kwargs={})
    hidden = unet.conv_in(latents)
    # Latents that cannot be halved evenly have to be upsampled to the exact sizes of the skips.
    uneven = any(side % 2**unet.num_upsamplers for side in latents.shape[-2:])
    return UNetPartialForward(hidden, (hidden,), embedding, states, pass_upsample_size=uneven)


def forward_block(unet: Any, partial: UNetPartialForward) -> UNetPartialForward:
    """Run the next block."""
    depth = len(unet.down_blocks)
    if partial.done < depth:
        return _down(unet.down_blocks[partial.done], partial)
    if partial.done == depth:
        return _mid(unet.mid_block, partial)
    return _up(unet.up_blocks[partial.done - depth - 1], partial, last=partial.done == 2 * depth)


def finish_forward(unet: Any, partial: UNetPartialForward, detach_after: int | None = None) -> Tensor:
    """Run the remaining blocks to the UNet's output (B,C,h,w).

    `detach_after` is a remaining block, or the last one done; no gradient crosses its end.
    """
    while partial.done < len(unet.down_blocks) + 1 + len(unet.up_blocks):
        if detach_after is not None and partial.done == detach_after + 1:
            partial = partial.detached()
        partial = forward_block(unet, partial)
    if detach_after is not None and partial.done == detach_after + 1:
        partial = partial.detached()
    hidden = partial.hidden
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    output: Tensor = unet.conv_out(hidden)
    return output


def read_feature(
    unet: Any,
    latents: Tensor,
    t: Tensor | int,
    states: Tensor,
    name: str,
    stop_after: int | None = None,
    added: Added | None = None,
) -> tuple[Tensor, UNetPartialForward]:
    """F = UNet_l(z_t, c, t), (B,C,h,w), and the pass after the feature's deepest block, or after `stop_after`.

    Several maps are concatenated along the channels in the order named. Those of `all-C-S` are resized to (S,S)
    first; their projection to C channels is trained and so belongs to the adapter.
    """
    feature = parse_feature(unet.config, name)
    partial = start_forward(unet, latents, t, states, added)
    maps: dict[int, Tensor] = {}
    stopped = None
    while partial.done <= feature.deepest:
        block = partial.done
        partial = forward_block(unet, partial)
        if block in feature.blocks:
            maps[block] = _resize(partial.hidden, feature)
        if block == stop_after:
            stopped = partial
    joined = [maps[block] for block in feature.blocks]
    return joined[0] if len(joined) == 1 else torch.cat(joined, dim=1), stopped or partial


def _down(block: Any, partial: UNetPartialForward) -> UNetPartialForward:
    hidden, skips = block(hidden_states=partial.hidden, temb=partial.embedding, **_text_for(block, partial))
    return replace(partial, hidden=hidden, skips=(*partial.skips, *skips), done=partial.done + 1)


def _mid(block: Any, partial: UNetPartialForward) -> UNetPartialForward:
    hidden = partial.hidden
    if block is not None:
        hidden = block(hidden, partial.embedding, **_text_for(block, partial))
    return replace(partial, hidden=hidden, done=partial.done + 1)


def _up(block: Any, partial: UNetPartialForward, last: bool) -> UNetPartialForward:
    used = len(block.resnets)
    remaining, own = partial.skips[:-used], partial.skips[-used:]
    hidden = block(
        hidden_states=partial.hidden,
        temb=partial.embedding,
        res_hidden_states_tuple=own,
        upsample_size=remaining[-1].shape[2:] if partial.pass_upsample_size and not last else None,
        **_text_for(block, partial),
    )
    return replace(partial, hidden=hidden, skips=remaining, done=partial.done + 1)


def _text_for(block: Any, partial: UNetPartialForward) -> dict[str, Tensor]:
    return {"encoder_hidden_states": partial.states} if getattr(block, "has_cross_attention", False) else {}


def _resize(hidden: Tensor, feature: FeatureSpec) -> Tensor:
    if feature.fused_side is None:
        return hidden
    return interpolate(hidden, size=(feature.fused_side, feature.fused_side), mode="nearest")
