"""UNet features by name, read by a forward pass that stops at the last block they need."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dpt.errors import UserError

_ALL = re.compile(r"all-([1-9]\d*)-([1-9]\d*)")

Grid = tuple[int, int]


@dataclass(frozen=True)
class FeatureSpec:
    """What one name stands for: the maps it is made of, in the order they are joined."""

    name: str
    blocks: tuple[int, ...]
    """Place of each map among the UNet's blocks, counted along the forward pass: down, mid, up."""
    channels: tuple[int, ...]
    """Width of each map."""
    fused_channels: int | None = None
    """The C of `all-C-S`: the width each map is projected to before the maps are summed."""
    fused_side: int | None = None
    """The S of `all-C-S`: the side every map is resized to."""

    @property
    def deepest(self) -> int:
        return max(self.blocks)


def parse_feature(config: Mapping[str, Any], name: str) -> FeatureSpec:
    """Read a feature's name against a UNet's configuration."""
    known = block_names(config)
    widths = _widths(config)
    if fused := _ALL.fullmatch(name):
        everything = tuple(known.values())
        channels = tuple(widths[block] for block in everything)
        return FeatureSpec(name, everything, channels, int(fused[1]), int(fused[2]))
    parts = name.split("_")
    if not set(parts) <= set(known):
        raise UserError(
            f"there is no UNet feature {name!r}; valid are {', '.join(known)}, several of equal grid joined by _ "
            f"({_joinable(config)}), and all-CHANNELS-SIDE"
        )
    if len(set(parts)) < len(parts):
        raise UserError(f"the UNet feature {name!r} names the same block twice")
    levels = _levels(config)
    blocks = tuple(known[part] for part in parts)
    if len({levels[block] for block in blocks}) > 1:
        raise UserError(f"the blocks of the UNet feature {name!r} differ in grid; equal are {_joinable(config)}")
    return FeatureSpec(name, blocks, tuple(widths[block] for block in blocks))


def feature_channels(config: Mapping[str, Any], name: str) -> int:
    """Channels of the joined maps."""
    return sum(parse_feature(config, name).channels)


def feature_grid(config: Mapping[str, Any], name: str, latent_size: Grid) -> Grid:
    """(h, w) of a feature for latents of that size: each level halves, rounding up."""
    asked = parse_feature(config, name)
    if asked.fused_side is not None:
        return asked.fused_side, asked.fused_side
    height, width = latent_size
    # Without padding of its own, a downsampling convolution loses the odd row.
    lost = 0 if config.get("downsample_padding", 1) else 1
    for _ in range(_levels(config)[asked.blocks[0]]):
        height, width = (height + 1 - lost) // 2, (width + 1 - lost) // 2
    return height, width


def block_names(config: Mapping[str, Any]) -> dict[str, int]:
    """Each block's name and its place along the forward pass. A UNet without a mid block skips that place."""
    depth = _depth(config)
    down = {f"bottom{i}": i for i in range(depth)}
    mid = {"mid": depth} if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") else {}
    return {**down, **mid, **{f"up{i}": depth + 1 + i for i in range(depth)}}


def _depth(config: Mapping[str, Any]) -> int:
    return len(config["block_out_channels"])


def _widths(config: Mapping[str, Any]) -> list[int]:
    widths = [int(width) for width in config["block_out_channels"]]
    return [*widths, widths[-1], *reversed(widths)]


def _levels(config: Mapping[str, Any]) -> list[int]:
    """How often the grid of each block's output has been halved; its own resampler counts."""
    depth = _depth(config)
    down = [min(i + 1, depth - 1) for i in range(depth)]
    up = [max(depth - 2 - i, 0) for i in range(depth)]
    return [*down, depth - 1, *up]


def _joinable(config: Mapping[str, Any]) -> str:
    levels = _levels(config)
    groups: dict[int, list[str]] = {}
    for name, block in block_names(config).items():
        groups.setdefault(levels[block], []).append(name)
    return "; ".join(", ".join(group) for group in groups.values() if len(group) > 1)


@dataclass(frozen=True)
class PartialForward:
    """A forward pass of B rows after its first `done` blocks: all that the rest of it needs."""

    hidden: Tensor  # (B,C,h,w), the output of block done - 1
    skips: tuple[Tensor, ...]  # each (B,C',h',w'); the up blocks ahead read them from the end
    embedding: Tensor  # (B,E), of the timestep
    states: Tensor  # (B,L,D), of the text
    done: int = 0
    sizes_follow_skips: bool = False

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> PartialForward:
        """The same pass, for some of its rows."""
        return replace(
            self,
            hidden=self.hidden[rows],
            skips=tuple(skip[rows] for skip in self.skips),
            embedding=self.embedding[rows],
            states=self.states[rows],
        )

    def joined(self, other: PartialForward) -> PartialForward:
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

    def detached(self) -> PartialForward:
        """The same pass, from which no gradient goes back: neither through the last block nor past it, by a skip."""
        skips = tuple(skip.detach() for skip in self.skips)
        return replace(self, hidden=self.hidden.detach(), skips=skips)


def begin_forward(unet: Any, latents: Tensor, t: Tensor | int, states: Tensor) -> PartialForward:
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
    return PartialForward(hidden, (hidden,), embedding, states, sizes_follow_skips=uneven)


def forward_block(unet: Any, at: PartialForward) -> PartialForward:
    """Through the next block."""
    depth = len(unet.down_blocks)
    if at.done < depth:
        return _down(unet.down_blocks[at.done], at)
    if at.done == depth:
        return _mid(unet.mid_block, at)
    return _up(unet.up_blocks[at.done - depth - 1], at, last=at.done == 2 * depth)


def finish_forward(unet: Any, at: PartialForward, detach_after: int | None = None) -> Tensor:
    """Through all blocks that are left, to the UNet's output (B,C,h,w).

    `detach_after` is a block ahead, or the last one done, past which no gradient goes back.
    """
    while at.done < len(unet.down_blocks) + 1 + len(unet.up_blocks):
        if detach_after is not None and at.done == detach_after + 1:
            at = at.detached()
        at = forward_block(unet, at)
    if detach_after is not None and at.done == detach_after + 1:
        at = at.detached()
    hidden = at.hidden
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    output: Tensor = unet.conv_out(hidden)
    return output


def _down(block: Any, at: PartialForward) -> PartialForward:
    hidden, skips = block(hidden_states=at.hidden, temb=at.embedding, **_text_for(block, at))
    return replace(at, hidden=hidden, skips=(*at.skips, *skips), done=at.done + 1)


def _mid(block: Any, at: PartialForward) -> PartialForward:
    hidden = at.hidden if block is None else block(at.hidden, at.embedding, **_text_for(block, at))
    return replace(at, hidden=hidden, done=at.done + 1)


def _up(block: Any, at: PartialForward, last: bool) -> PartialForward:
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


def _text_for(block: Any, at: PartialForward) -> dict[str, Tensor]:
    return {"encoder_hidden_states": at.states} if getattr(block, "has_cross_attention", False) else {}


def read_feature(
    unet: Any, latents: Tensor, t: Tensor | int, states: Tensor, name: str, pause_after: int | None = None
) -> tuple[Tensor, PartialForward]:
    """F = UNet_l(z_t, c, t), (B,C,h,w), and the pass from which `walk.finish` can go on.

    The pass stands after the deepest block of the feature, or after an earlier one that `pause_after` names.

    The maps of a name with several are joined along the channels in the order named; those of `all-C-S` are
    first resized to (S,S), and their projection to C channels is left to the reader, because it is trained.
    """
    asked = parse_feature(unet.config, name)
    at = begin_forward(unet, latents, t, states)
    maps: dict[int, Tensor] = {}
    paused = None
    while at.done <= asked.deepest:
        block = at.done
        at = forward_block(unet, at)
        if block in asked.blocks:
            maps[block] = _resized(at.hidden, asked)
        if block == pause_after:
            paused = at
    return _joined([maps[block] for block in asked.blocks]), paused or at


def _resized(hidden: Tensor, asked: FeatureSpec) -> Tensor:
    if asked.fused_side is None:
        return hidden
    return interpolate(hidden, size=(asked.fused_side, asked.fused_side), mode="nearest")


def _joined(maps: list[Tensor]) -> Tensor:
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
