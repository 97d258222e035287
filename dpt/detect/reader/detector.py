"""The reader: its network, what it is trained towards, how its output becomes objects, and the `Detector` of it.

A trained reader is a folder: `reader.safetensors` and `reader.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpt.backbone.device import resolve_device
from dpt.claims.facts import Box, overlap
from dpt.claims.judge import Detection, Detections, Unreadable
from dpt.data.scenes.world import POCKET_WORLD
from dpt.detect.base import Image
from dpt.detect.reader import RECORD
from dpt.errors import UserError
from dpt.files import atomic_folder
from dpt.records import read_record, to_plain
from dpt.weights import build_strictly, read_weights, write_weights

STRIDE = 4
"""Pixels to a cell of the output."""

UNKNOWN = -1
"""Of a shape or colour that is not to be named, and of a readability that is not trained on."""

EXTENT = 16.0
"""Pixels to a unit of a predicted distance."""


@dataclass(frozen=True)
class ReaderConfig:
    shapes: tuple[str, ...] = POCKET_WORLD.shapes
    colours: tuple[str, ...] = POCKET_WORLD.colours
    size: str = "large"
    """The size of every object of its world."""
    side: int = 64
    """Of the square images, in pixels."""
    width: int = 64
    blocks: int = 5
    present: float = 0.5
    """Least score of a mark, readable or not."""
    sure: float = 0.9
    """Least product of the probabilities of being readable, of the shape and of the colour; else it is unreadable."""
    iou: float = 0.5
    """Of two marks that overlap more, the one with the lower score is dropped."""

    def __post_init__(self) -> None:
        if self.side < 2 * STRIDE or self.side % STRIDE or self.width < 2 or self.width % 2 or self.blocks < 1:
            raise UserError(
                f"a reader has a side divisible by {STRIDE}, an even width and a block at least, "
                f"not {self.side}, {self.width} and {self.blocks}"
            )
        if not self.shapes or not self.colours:
            raise UserError("a reader names a shape and a colour at least")
        if max(self.side, self.width, self.blocks, len(self.shapes), len(self.colours)) > 1024:
            raise UserError("a reader of more than 1024 pixels, channels, blocks or names is not built")

    @property
    def cells(self) -> int:
        return self.side // STRIDE


@dataclass(frozen=True)
class Mark:
    """What is in a picture at one place, readable or not."""

    box: Box
    shape: int = UNKNOWN
    colour: int = UNKNOWN
    readable: int = 0
    """1, 0, or UNKNOWN for what is between the two."""


@dataclass(frozen=True)
class ReaderOutput:
    """Logits for each cell, and distances to the four edges in pixels."""

    present: Tensor  # (B,h,w)
    readable: Tensor  # (B,h,w)
    edges: Tensor  # (B,4,h,w), from the cell's centre: left, top, right, bottom
    shapes: Tensor  # (B,shapes,h,w)
    colours: Tensor  # (B,colours,h,w)


class ReaderNetwork(nn.Module):
    """A residual convolutional network at a quarter of the resolution."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        outputs = 6 + len(config.shapes) + len(config.colours)
        self.stem = nn.Sequential(nn.Conv2d(3, width // 2, 4, 2, 1), nn.ReLU(), nn.Conv2d(width // 2, width, 4, 2, 1))
        self.body = nn.Sequential(*(ReaderBlock(width) for _ in range(config.blocks)))
        last = nn.Conv2d(2 * width, outputs, 1)
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(width, 2 * width, 1), nn.ReLU(), last)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        assert last.bias is not None
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias[0] = -3.0  # few cells are the centre of anything

    def forward(self, pixels: Tensor) -> ReaderOutput:
        """`pixels`: (B,3,side,side) in [-1, 1]."""
        raw = self.head(self.body(self.stem(pixels.contiguous(memory_format=torch.channels_last)))).float()
        n_shapes = len(self.config.shapes)
        present, readable, edges, shapes, colours = raw.split([1, 1, 4, n_shapes, len(self.config.colours)], dim=1)
        return ReaderOutput(present[:, 0], readable[:, 0], EXTENT * F.softplus(edges), shapes, colours)

    def channels_last(self) -> ReaderNetwork:
        """The same, with its weights stored channels last: on CPUs twice as fast."""
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self


class ReaderBlock(nn.Module):
    """With a learnt gain, small at first, instead of normalisation, which costs a CPU as much as the convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.gain = nn.Parameter(torch.full((1, width, 1, 1), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.layers(x)
        return x + self.gain.to(change.dtype) * change


NEAR = 1.5
"""Cells from a mark's centre that predict its box and what it is."""

SPREAD = 0.8
"""Of the bump around a mark's centre in the target, in cells."""


@dataclass(frozen=True)
class ReaderTargets:
    """What the output should be. Where `weight` is 0, only `present` is trained."""

    present: Tensor  # (B,h,w), 1 at centres, falling off around them
    weight: Tensor  # (B,h,w), of the cells near a mark's centre, which sum to 1
    readable: Tensor  # (B,h,w), 1, 0 or UNKNOWN
    corners: Tensor  # (B,4,h,w), in pixels
    shapes: Tensor  # (B,h,w)
    colours: Tensor  # (B,h,w)


def targets(pictures: Sequence[Sequence[Mark]], config: ReaderConfig, nothing_named: Sequence[bool]) -> ReaderTargets:
    """`nothing_named`: pictures without a scene, whose every cell is an unreadable mark."""
    n, h = len(pictures), config.cells
    present, weight = np.zeros((n, h, h), np.float32), np.zeros((n, h, h), np.float32)
    labels, corners = np.full((3, n, h, h), UNKNOWN), np.zeros((n, 4, h, h), np.float32)
    centres = (np.arange(h, dtype=np.float32) + 0.5) * STRIDE
    for k, marks in enumerate(pictures):
        nearest = np.full((h, h), np.inf)
        for mark in marks:
            x, y = mark.box.centre
            away = np.hypot((centres - x)[None, :], (centres - y)[:, None]) / STRIDE
            bump = np.exp(-((away / SPREAD) ** 2) / 2)
            bump[np.unravel_index(away.argmin(), away.shape)] = 1
            present[k] = np.maximum(present[k], bump)
            own = (away <= NEAR) & (away < nearest)
            nearest[own] = away[own]
            weight[k][own] = 1 / max(1, own.sum())
            labels[:, k, own] = np.array([[mark.readable], [mark.shape], [mark.colour]])
            corners[k][:, own] = np.array([[mark.box.x0], [mark.box.y0], [mark.box.x1], [mark.box.y1]])
        if nothing_named[k]:
            present[k], labels[0, k] = 1, 0
            weight[k] = 1 / h**2
            corners[k, 2:] = config.side
    readable, shapes, colours = map(torch.from_numpy, labels)
    return ReaderTargets(
        torch.from_numpy(present), torch.from_numpy(weight), readable, torch.from_numpy(corners), shapes, colours
    )


@torch.no_grad()
def read_output(output: ReaderOutput, config: ReaderConfig) -> list[Detections]:
    """The objects of each picture: peaks of the score, the better of two that overlap, named where they are sure."""
    score = output.present.sigmoid()
    peak = (score == F.max_pool2d(score[:, None], 3, 1, 1)[:, 0]) & (score >= config.present)
    readable = output.readable.sigmoid()
    (shape_p, shape), (colour_p, colour) = output.shapes.softmax(1).max(1), output.colours.softmax(1).max(1)
    pictures: list[list[tuple[float, Detection | Unreadable]]] = [[] for _ in range(len(score))]
    for k, row, column in peak.nonzero().tolist():
        left, top, right, bottom = output.edges[k, :, row, column].tolist()
        x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
        box = Box(x - left, y - top, x + right, y + bottom)
        at = (k, row, column)
        sure = float(readable[at] * shape_p[at] * colour_p[at])
        name = config.shapes[int(shape[at])], config.colours[int(colour[at])]
        if sure >= config.sure:
            found: Detection | Unreadable = Detection(name[0], box, float(score[at]) * sure, name[1], config.size)
        else:
            doubts = {"of no known shape or colour": readable[at], "a shape": shape_p[at], "a colour": colour_p[at]}
            doubt = min(doubts, key=lambda why: float(doubts[why]))
            between = "" if doubt.startswith("of") else " between two"
            found = Unreadable(box, f"{doubt}{between}, {name[1]} {name[0]} the nearest ({sure:.0%} sure)")
        pictures[k].append((float(score[at]), found))
    return [_detections(found, config.iou) for found in pictures]


def _detections(found: list[tuple[float, Detection | Unreadable]], iou: float) -> Detections:
    kept: list[Detection | Unreadable] = []
    for _, mark in sorted(found, key=lambda scored: -scored[0]):
        if all(overlap(mark.box, better.box) <= iou for better in kept):
            kept.append(mark)
    return Detections(
        tuple(mark for mark in kept if isinstance(mark, Detection)),
        tuple(mark for mark in kept if isinstance(mark, Unreadable)),
    )


WEIGHTS = "reader.safetensors"

BATCH_SIZE = 64


@dataclass(frozen=True)
class ReaderRecord:
    """`reader.json`: how the network is built and how its output is read."""

    config: ReaderConfig
    weights_sha256: str
    format: int = 1


@dataclass(frozen=True)
class Reader:
    """A `Detector` of the pocket world that names shape and colour of each object, and what it cannot name."""

    network: ReaderNetwork
    weights_sha256: str

    @property
    def identity(self) -> str:
        config = self.network.config
        return f"reader {self.weights_sha256[:12]} score >= {config.present:g} sure >= {config.sure:g}"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.network.config.shapes

    def detect(self, images: Sequence[Image], queries: Sequence[Sequence[str]] | None = None) -> list[Detections]:
        side = self.network.config.side
        for image in images:
            if image.shape != (side, side, 3) or image.dtype != np.uint8:
                raise UserError(
                    f"the reader reads RGB images of {side} x {side} pixels, not {' x '.join(map(str, image.shape))}"
                )
        found: list[Detections] = []
        for start in range(0, len(images), BATCH_SIZE):
            found += self._detect(images[start : start + BATCH_SIZE])
        return found

    @torch.inference_mode()
    def _detect(self, images: Sequence[Image]) -> list[Detections]:
        pixels = to_pixels(images).to(next(self.network.parameters()).device)
        return read_output(self.network(pixels), self.network.config)


def to_pixels(images: Sequence[Image]) -> torch.Tensor:
    """(B,3,H,W) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def save_reader(network: ReaderNetwork, folder: Path) -> None:
    """Write the folder, completely or not at all, in float16; it must be empty or missing."""
    with atomic_folder(folder) as work:
        digest = write_weights({name: t.half() for name, t in network.state_dict().items()}, work / WEIGHTS)
        record = ReaderRecord(network.config, digest)
        (work / RECORD).write_text(json.dumps(to_plain(record), indent=1) + "\n")


def open_reader(folder: Path, device: str | None = None) -> Reader:
    if not folder.is_dir():
        raise UserError(f"there is no reader {folder}: `dpt detect train-reader` trains one")
    record = read_record(ReaderRecord, folder / RECORD)
    if record.format != 1:
        raise UserError(f"{folder / RECORD} has format {record.format}; this version of dpt reads format 1")
    weights = read_weights(folder / WEIGHTS, record.weights_sha256)
    network = build_strictly(lambda: ReaderNetwork(record.config), weights, str(folder / WEIGHTS), into="the reader")
    return Reader(network.float().eval().to(resolve_device(device)).channels_last(), record.weights_sha256)
