"""A trained reader as a `Detector`, and as a folder: `reader.safetensors` and `reader.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dpt.backbone.device import resolve_device
from dpt.claims.detections import Detections
from dpt.detect.base import Image
from dpt.detect.reader import RECORD
from dpt.detect.reader.network import ReaderConfig, ReaderNetwork, read_output
from dpt.errors import UserError
from dpt.files import atomic_folder
from dpt.records import read_record, to_plain
from dpt.weights import build_strictly, read_weights, write_weights

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
