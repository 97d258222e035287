"""The names of what a UNet computes on its way: bottom0 … mid … upN, several joined, or all of them fused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpt.errors import UserError

_ALL = re.compile(r"all-([1-9]\d*)-([1-9]\d*)")
Grid = tuple[int, int]


@dataclass(frozen=True)
class Feature:
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


def feature(config: Mapping[str, Any], name: str) -> Feature:
    """Read a feature's name against a UNet's configuration."""
    known = block_names(config)
    widths = _widths(config)
    if fused := _ALL.fullmatch(name):
        everything = tuple(known.values())
        channels = tuple(widths[block] for block in everything)
        return Feature(name, everything, channels, int(fused[1]), int(fused[2]))
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
    return Feature(name, blocks, tuple(widths[block] for block in blocks))


def feature_channels(config: Mapping[str, Any], name: str) -> int:
    """Channels of the joined maps."""
    return sum(feature(config, name).channels)


def feature_grid(config: Mapping[str, Any], name: str, latent_size: Grid) -> Grid:
    """(h, w) of a feature for latents of that size: each level halves, rounding up."""
    asked = feature(config, name)
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
