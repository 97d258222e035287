"""Train the reader on practice pictures: where marks are, which are readable, and what those are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpt.backbone.device import matmul_autocast
from dpt.backbone.rng import SampleRNG
from dpt.claims.facts import overlap
from dpt.claims.judge import Detections
from dpt.data.example import CAPTION_ONLY, ExampleParts
from dpt.detect.accuracy import MATCH_IOU
from dpt.detect.reader.detector import UNKNOWN, ReaderNetwork, read_output, save_reader
from dpt.detect.reader.practice import PracticeBatch, PracticePicture, PracticeStream
from dpt.training.engine.task import OnBatch, ParameterGroup, Tally, matrices_decay

READER_FOLDER = "reader"

EVERY = 16
"""Every sixteenth picture is encoded and decoded by the VAE..."""

MOST_NOISE = 0.3
"""...with noise on its latents, of a standard deviation up to this."""

TEXTURE_WEIGHT = 1 / 64
"""Of each cell of a picture without a scene, in the loss of what is present."""


class ReaderTask:
    """`vae`: frozen; None to leave out the round trip."""

    weights: ClassVar[Mapping[str, float]] = {"present": 1.0, "readable": 1.0, "shape": 1.0, "colour": 1.0, "box": 2.0}
    scales_loss = False
    folders = (READER_FOLDER,)

    def __init__(
        self,
        network: ReaderNetwork,
        vae: Any = None,
        validation: PracticeStream | None = None,
        validation_pictures: int = 512,
        val_batch_size: int = 64,
        matmul_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.network = network.channels_last()
        self.vae, self.validation = vae, validation
        self.matmul_dtype = matmul_dtype
        self.validation_pictures, self.val_batch_size = validation_pictures, val_batch_size

    @property
    def trained(self) -> nn.Module:
        return self.network

    @property
    def parts(self) -> ExampleParts:
        return CAPTION_ONLY

    @property
    def num_validation_examples(self) -> int:
        return 0 if self.validation is None else self.validation_pictures

    def parameter_groups(self) -> list[ParameterGroup]:
        return matrices_decay(self.network)

    def count(self, batch: PracticeBatch) -> int:
        return sum(len(picture.marks) for picture in batch.pictures)

    def losses(self, batch: PracticeBatch, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
        """Sums over marks, each divided by their number."""
        aim = batch.targets
        with matmul_autocast(self.matmul_dtype, batch.pixels.device.type):
            output = self.network(self._round_trip(batch.pixels, rng))
        readable = aim.weight * (aim.readable != UNKNOWN)
        named = aim.weight * (aim.shapes != UNKNOWN)
        sums = {
            "present": present_loss(output.present, aim.present),
            "readable": readable * _binary(output.readable, aim.readable),
            "shape": named * _cross_entropy(output.shapes, aim.shapes),
            "colour": named * _cross_entropy(output.colours, aim.colours),
            "box": aim.weight * box_loss(output.edges, aim.corners, self.network.config.side),
        }
        return {name: value.sum() / num_boxes for name, value in sums.items()}

    @torch.no_grad()
    def _round_trip(self, pixels: Tensor, rng: SampleRNG) -> Tensor:
        chosen = [] if self.vae is None else [k for k, at in enumerate(rng.positions) if at % EVERY == 0]
        if not chosen:
            return pixels
        own = SampleRNG(rng.seed, [rng.positions[k] for k in chosen])
        latents = self.vae.encode(pixels[chosen]).latent_dist.mode()
        spread = MOST_NOISE * own.integers(1000, "latent spread") / 1000
        noise = spread[:, None, None, None] * own.normal(latents.shape[1:], "latent noise")
        decoded = self.vae.decode(latents + noise.to(latents)).sample.clamp(-1, 1)
        return pixels.index_copy(0, torch.tensor(chosen, device=pixels.device), decoded.to(pixels))

    @torch.no_grad()
    def validate(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        """On practice pictures: the share of tidy ones read exactly, of objects read right, of what has no name
        refused."""
        if self.validation is None:
            return {}
        names = ("exact", "right", "refused")
        sums = {name: [0.0, 0.0] for name in names}
        own = range(part, self.validation_pictures, parts)
        device = next(self.network.parameters()).device
        positions = [own[start : start + self.val_batch_size] for start in range(0, len(own), self.val_batch_size)]
        for batch in self.validation.batches(positions):
            found = read_output(self.network(batch.pixels.to(device)), self.network.config)
            for picture, detections in zip(batch.pictures, found, strict=True):
                for name, (total, count) in zip(names, _tally(picture, detections, self.network), strict=True):
                    sums[name][0] += total
                    sums[name][1] += count
            on_batch(len(batch))
        return {name: (total, count) for name, (total, count) in sums.items()}

    def memory(self, examples: int) -> Mapping[str, int]:
        config = self.network.config
        maps = 4 * (config.side // 2) ** 2 * config.width + (4 * config.blocks + 6) * config.cells**2 * config.width
        vae = 0 if self.vae is None else sum(p.numel() * p.element_size() for p in self.vae.parameters())
        return {"activations": 4 * maps * examples, "the VAE": vae}

    def export(self, root: Path, base: str = "") -> list[Path]:
        save_reader(self.network, root / READER_FOLDER)
        return [root / READER_FOLDER]


def present_loss(logits: Tensor, aim: Tensor) -> Tensor:
    """The focal loss of each cell; what is near a centre but no centre counts less the nearer it is."""
    p, log_p, log_not = logits.sigmoid(), F.logsigmoid(logits), F.logsigmoid(-logits)
    loss = torch.where(aim == 1, -((1 - p) ** 2) * log_p, -((1 - aim) ** 4) * p**2 * log_not)
    texture = (aim == 1).flatten(1).all(1)
    return loss * torch.where(texture, TEXTURE_WEIGHT, 1.0)[:, None, None]


def box_loss(edges: Tensor, corners: Tensor, side: int) -> Tensor:
    """1 - IoU, and the distance of the edges in tenths of the picture, of each cell."""
    cells = edges.shape[-1]
    centres = (torch.arange(cells, device=edges.device) + 0.5) * (side / cells)
    x, y = centres[None, None, :], centres[None, :, None]
    aim = torch.stack([x - corners[:, 0], y - corners[:, 1], corners[:, 2] - x, corners[:, 3] - y], 1)
    inside = aim.clamp(min=0)
    shared = torch.minimum(edges[:, 0], inside[:, 0]) + torch.minimum(edges[:, 2], inside[:, 2])
    shared = shared * (torch.minimum(edges[:, 1], inside[:, 1]) + torch.minimum(edges[:, 3], inside[:, 3]))
    areas = [(e[:, 0] + e[:, 2]) * (e[:, 1] + e[:, 3]) for e in (edges, inside)]
    return 1 - shared / (sum(areas) - shared).clamp(min=1e-6) + (edges - inside).abs().mean(1) * 10 / side


def _binary(logits: Tensor, aim: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, aim.clamp(min=0).float(), reduction="none")


def _cross_entropy(logits: Tensor, aim: Tensor) -> Tensor:
    return F.cross_entropy(logits, aim, ignore_index=UNKNOWN, reduction="none")


def _tally(
    picture: PracticePicture, found: Detections, network: ReaderNetwork
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(hits, of how many) for: tidy pictures read exactly, objects read right, unreadable marks refused."""
    config = network.config
    right = refused = 0
    readable = [mark for mark in picture.marks if mark.readable == 1]
    unreadable = [mark for mark in picture.marks if mark.readable == 0]
    for mark in readable:
        name = config.shapes[mark.shape], config.colours[mark.colour]
        right += any((d.label, d.colour) == name and overlap(d.box, mark.box) >= 0.7 for d in found.objects)
    for mark in unreadable:
        refused += any(overlap(region.box, mark.box) >= MATCH_IOU for region in found.unreadable)
    if picture.nothing_named:
        return (0, 0), (0, 0), (int(bool(found.unreadable) and not found.objects), 1)
    exact = right == len(found.objects) == len(readable) and not found.unreadable
    tidy = int(picture.tidy and len(readable) == len(picture.marks))
    return (int(exact and tidy), tidy), (right, len(readable)), (refused, len(unreadable))
