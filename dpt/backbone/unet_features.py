"""A UNet's features and blocks by name, and its forward pass block by block, which can stop at a feature and go on.

Everything is derived from the UNet's config. Blocks are counted along the forward pass: down, mid, up. They are called
as `UNet2DConditionModel.forward` calls them; the numbers are the same to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dpt.backbone.base import FeatureSpec, Grid
from dpt.errors import UserError

_ALL = re.compile(r"all-([1-9]\d*)-([1-9]\d*)")

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""Of every attention layer: query, key, value and output."""

_PROJECTION = re.compile(
    r"(?:(down)_blocks\.(\d+)|(mid)_block|(up)_blocks\.(\d+))\..*\.attn[12]\.(?:to_[qkv]|to_out\.0)"
)

HALVES = {"down": "bottom", "mid": "mid", "up": "up"}


def block_names(config: Mapping[str, Any]) -> dict[str, int]:
    """Each block's name and position. A UNet without a mid block skips that position."""
    depth = _depth(config)
    down = {f"bottom{i}": i for i in range(depth)}
    mid = {"mid": depth} if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") else {}
    return {**down, **mid, **{f"up{i}": depth + 1 + i for i in range(depth)}}


def default_feature(config: Mapping[str, Any]) -> str:
    """The published up1; of XL up0, its first up block that reads the text too. Both have 1280 channels at 1/16 of the
    image."""
    return "up0" if config.get("addition_embed_type") else f"up{min(1, _depth(config) - 1)}"


def parse_feature(config: Mapping[str, Any], name: str) -> FeatureSpec:
    """Resolve a feature's name: a block, several joined by `_`, or `all-CHANNELS-SIDE`."""
    blocks = block_names(config)
    widths = _widths(config)
    if fused := _ALL.fullmatch(name):
        positions = tuple(blocks.values())
        return FeatureSpec(name, positions, tuple(widths[i] for i in positions), int(fused[1]), int(fused[2]))
    parts = name.split("_")
    if not set(parts) <= set(blocks):
        raise UserError(
            f"there is no UNet feature {name!r}; valid are {', '.join(blocks)}, several of equal grid joined by _ "
            f"({_joinable(config)}), and all-CHANNELS-SIDE"
        )
    if len(set(parts)) < len(parts):
        raise UserError(f"the UNet feature {name!r} names the same block twice")
    levels = _levels(config)
    positions = tuple(blocks[part] for part in parts)
    if len({levels[i] for i in positions}) > 1:
        raise UserError(f"the blocks of the UNet feature {name!r} differ in grid; equal are {_joinable(config)}")
    return FeatureSpec(name, positions, tuple(widths[i] for i in positions))


def feature_grid(config: Mapping[str, Any], name: str, latent_size: Grid) -> Grid:
    """(h, w) of a feature for latents of this size: each downsampling halves, rounding up."""
    feature = parse_feature(config, name)
    if feature.fused_side is not None:
        return feature.fused_side, feature.fused_side
    height, width = latent_size
    # A downsampling convolution without padding loses the odd row.
    lost = 0 if config.get("downsample_padding", 1) else 1
    for _ in range(_levels(config)[feature.blocks[0]]):
        height, width = (height + 1 - lost) // 2, (width + 1 - lost) // 2
    return height, width


def block_of(module: str) -> str | None:
    """The block that an attention projection lies in, by its name in the UNet; None for any other module."""
    if not (match := _PROJECTION.fullmatch(module)):
        return None
    down, i, mid, _, j = match.groups()
    return f"bottom{i}" if down else "mid" if mid else f"up{j}"


STABLE_DIFFUSION, STABLE_DIFFUSION_XL = "Stable Diffusion 1.x or 2.x", "Stable Diffusion XL"

_ONLY_IN = {
    STABLE_DIFFUSION_XL: re.compile(r"up_blocks\.0\.attentions\..*|.*\.transformer_blocks\.[1-9]\d*\..*"),
    STABLE_DIFFUSION: re.compile(r"down_blocks\.0\.attentions\..*|up_blocks\.3\..*"),
}
"""XL has deep transformers, and attention in the first up block; the others have attention in the first down block."""


def lora_architecture(targets: Iterable[str]) -> str:
    """The architecture of the UNet with these attention modules; "" if several could have them, or none."""
    targets = [target for target in targets if block_of(target)]
    return next((name for name, own in _ONLY_IN.items() if any(map(own.fullmatch, targets))), "")


def lora_targets(unet: Any, blocks: Sequence[str]) -> list[str]:
    """The attention projections in these blocks, in the UNet's order."""
    chosen = _expand_blocks(unet.config, blocks)
    targets = [name for name, _ in unet.named_modules() if (block := block_of(name)) and block in chosen]
    if not targets:
        raise UserError(f"the blocks {' '.join(blocks)} of this UNet have no attention layer that a LoRA could join")
    return targets


def _expand_blocks(config: Mapping[str, Any], names: Sequence[str]) -> set[str]:
    """`all`, `down`, `mid`, `up` or single blocks, as a set of blocks."""
    blocks = list(block_names(config))
    chosen: set[str] = set()
    for name in names:
        if name == "all":
            chosen |= set(blocks)
        elif name in HALVES:
            chosen |= {block for block in blocks if block.startswith(HALVES[name])}
        elif name in blocks:
            chosen.add(name)
        else:
            raise UserError(f"there is no block {name!r} for a LoRA; valid are all, down, mid, up, {', '.join(blocks)}")
    return chosen


def _depth(config: Mapping[str, Any]) -> int:
    return len(config["block_out_channels"])


def _widths(config: Mapping[str, Any]) -> list[int]:
    """Channels of each block's output, by position."""
    widths = [int(width) for width in config["block_out_channels"]]
    return [*widths, widths[-1], *reversed(widths)]


def _levels(config: Mapping[str, Any]) -> list[int]:
    """How often the grid of each block's output has been halved, its own resampler included."""
    depth = _depth(config)
    down = [min(i + 1, depth - 1) for i in range(depth)]
    up = [max(depth - 2 - i, 0) for i in range(depth)]
    return [*down, depth - 1, *up]


def _joinable(config: Mapping[str, Any]) -> str:
    """The blocks of equal grid, in words."""
    levels = _levels(config)
    groups: dict[int, list[str]] = {}
    for name, position in block_names(config).items():
        groups.setdefault(levels[position], []).append(name)
    return "; ".join(", ".join(group) for group in groups.values() if len(group) > 1)


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
