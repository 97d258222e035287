"""Where a step's time goes: seconds spent inside each part, on the way forward and on the way back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dpt.backbone import Backbone

LEARNT_THROUGH = "UNet"
"""The only part that gradients go back through."""


def parts_of(backbone: Backbone) -> dict[str, list[nn.Module]]:
    """Pieces that are called one after the other, never one within another."""
    *texts, vae, unet = backbone.modules()
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    rows = ("resnets", "attentions", "downsamplers", "upsamplers")
    inner = [piece for block in blocks for row in rows for piece in getattr(block, row, None) or ()]
    return {
        "text encoder": texts,
        "VAE": [vae.encoder],
        LEARNT_THROUGH: [unet.conv_in, unet.time_embedding, *inner, unet.conv_out],
    }


class Clock:
    """While it runs, hooks say when a piece begins and ends. A GPU is waited for each time, which slows a step."""

    def __init__(self, parts: Mapping[str, Sequence[nn.Module]], device: torch.device) -> None:
        self.parts, self.device = parts, device
        self.seconds: dict[str, float] = {}
        self._begun: dict[tuple[int, bool], float] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        hooks: list[Any] = []
        for name, pieces in self.parts.items():
            for piece in pieces:
                hooks += self._hooks(name, piece)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hooks(self, name: str, piece: nn.Module) -> list[Any]:
        def begin(back: bool) -> None:
            self._begun[id(piece), back] = self._now()

        def end(back: bool) -> None:
            label = f"{name}, backward" if back else f"{name}, forward"
            spent = self._now() - self._begun.pop((id(piece), back), self._now())
            self.seconds[label] = self.seconds.get(label, 0.0) + spent

        hooks: list[Any] = [
            piece.register_forward_pre_hook(lambda *_: begin(False)),
            piece.register_forward_hook(lambda *_: end(False)),
        ]
        if name == LEARNT_THROUGH:
            hooks.append(piece.register_full_backward_pre_hook(lambda *_: begin(True)))
            hooks.append(piece.register_full_backward_hook(lambda *_: end(True)))
        return hooks

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
