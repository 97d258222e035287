"""Names in a UNet: its blocks, the features that can be read after them, and the modules that a LoRA can join.

Everything is derived from the UNet's config. Blocks are counted along the forward pass: down, mid, up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
