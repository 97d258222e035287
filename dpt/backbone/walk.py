"""A UNet's forward pass taken block by block with its own modules: it can stop anywhere, and go on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dpt.errors import UserError


@dataclass(frozen=True)
class Partway:
    """A forward pass of B rows after its first `done` blocks: all that the rest of it needs."""

    hidden: Tensor  # (B,C,h,w), the output of block done - 1
    skips: tuple[Tensor, ...]  # each (B,C',h',w'); the up blocks ahead read them from the end
    embedding: Tensor  # (B,E), of the timestep
    states: Tensor  # (B,L,D), of the text
    done: int = 0
    sizes_follow_skips: bool = False

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Partway:
        """The same pass, for some of its rows."""
        return replace(
            self,
            hidden=self.hidden[rows],
            skips=tuple(skip[rows] for skip in self.skips),
            embedding=self.embedding[rows],
            states=self.states[rows],
        )

    def joined(self, other: Partway) -> Partway:
        """Two passes that have come equally far, as one: first the rows of this one."""
        if self.done != other.done:
            raise ValueError(f"a pass after {self.done} blocks cannot go on with one after {other.done}")
        return replace(
            self,
            hidden=torch.cat([self.hidden, other.hidden]),
            skips=tuple(map(torch.cat, zip(self.skips, other.skips, strict=True))),
            embedding=torch.cat([self.embedding, other.embedding]),
            states=torch.cat([self.states, other.states]),
        )

    def detached(self) -> Partway:
        """The same pass, from which no gradient goes back: neither through the last block nor past it, by a skip."""
        skips = tuple(skip.detach() for skip in self.skips)
        return replace(self, hidden=self.hidden.detach(), skips=skips)


def begin(unet: Any, latents: Tensor, t: Tensor | int, states: Tensor) -> Partway:
    """Before the first block: latents (B,C,h,w), t (B,) or a number, text states (B,L,D)."""
    config = unet.config
    if config.class_embed_type or config.num_class_embeds or config.addition_embed_type:
        raise UserError("this UNet asks for more than latents, timestep and text; its features cannot be read")
    if config.center_input_sample:
        latents = 2 * latents - 1
    embedding = unet.time_embedding(unet.get_time_embed(sample=latents, timestep=t))
    if unet.time_embed_act is not None:
        embedding = unet.time_embed_act(embedding)
    states = unet.process_encoder_hidden_states(encoder_hidden_states=states, added_cond_kwargs={})
    hidden = unet.conv_in(latents)
    # A latent that the UNet cannot halve evenly is doubled back to the sizes it had on the way down.
    uneven = any(side % 2**unet.num_upsamplers for side in latents.shape[-2:])
    return Partway(hidden, (hidden,), embedding, states, sizes_follow_skips=uneven)


def step(unet: Any, at: Partway) -> Partway:
    """Through the next block."""
    depth = len(unet.down_blocks)
    if at.done < depth:
        return _down(unet.down_blocks[at.done], at)
    if at.done == depth:
        return _mid(unet.mid_block, at)
    return _up(unet.up_blocks[at.done - depth - 1], at, last=at.done == 2 * depth)


def finish(unet: Any, at: Partway, detach_after: int | None = None) -> Tensor:
    """Through all blocks that are left, to the UNet's output (B,C,h,w).

    `detach_after` is a block ahead, or the last one done, past which no gradient goes back.
    """
    while at.done < len(unet.down_blocks) + 1 + len(unet.up_blocks):
        if detach_after is not None and at.done == detach_after + 1:
            at = at.detached()
        at = step(unet, at)
    if detach_after is not None and at.done == detach_after + 1:
        at = at.detached()
    hidden = at.hidden
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    output: Tensor = unet.conv_out(hidden)
    return output


def _down(block: Any, at: Partway) -> Partway:
    hidden, skips = block(hidden_states=at.hidden, temb=at.embedding, **_text_for(block, at))
    return replace(at, hidden=hidden, skips=(*at.skips, *skips), done=at.done + 1)


def _mid(block: Any, at: Partway) -> Partway:
    hidden = at.hidden if block is None else block(at.hidden, at.embedding, **_text_for(block, at))
    return replace(at, hidden=hidden, done=at.done + 1)


def _up(block: Any, at: Partway, last: bool) -> Partway:
    used = len(block.resnets)
    ahead, mine = at.skips[:-used], at.skips[-used:]
    hidden = block(
        hidden_states=at.hidden,
        temb=at.embedding,
        res_hidden_states_tuple=mine,
        upsample_size=ahead[-1].shape[2:] if at.sizes_follow_skips and not last else None,
        **_text_for(block, at),
    )
    return replace(at, hidden=hidden, skips=ahead, done=at.done + 1)


def _text_for(block: Any, at: Partway) -> dict[str, Tensor]:
    return {"encoder_hidden_states": at.states} if getattr(block, "has_cross_attention", False) else {}
