"""The losses of matching and grounding on held-out examples, each always with the same timestep and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from dpt.backbone import Backbone
from dpt.backbone.rng import SampleRNG
from dpt.data.example import Batch
from dpt.data.stream import Stream, load
from dpt.probes.probe import NOISE_SEED
from dpt.training.engine.task import OnBatch, Tally
from dpt.training.tasks.denoising import NoiseConfig, add_noise_to_batch
from dpt.training.tasks.discriminative import (
    GROUNDING_LOSSES,
    MATCHING_LOSSES,
    Discriminative,
    boxes_in,
    pairs_of,
)

MOST_EXAMPLES = 256
"""Of each stream. A loss is known to a few percent from so many, while six pairs of each cost a forward pass."""


class HeldOutLosses:
    """What the training losses are on examples that are not trained on.

    The timesteps are those that training draws from, so that the values can be compared with its curve.
    """

    def __init__(
        self,
        backbone: Backbone,
        discriminative: Discriminative,
        streams: Mapping[str, Stream],
        noise: NoiseConfig,
        batch_size: int = 16,
        score_grounding: bool = True,
    ) -> None:
        self.backbone, self.discriminative, self.streams = backbone, discriminative, streams
        self.noise, self.batch_size = noise, batch_size
        self.parts = discriminative.parts if score_grounding else replace(discriminative.parts, expression=False)

    @property
    def num_examples(self) -> int:
        return sum(len(self._positions(stream)) for stream in self.streams.values()) if self.names else 0

    @property
    def names(self) -> list[str]:
        """The losses that have a weight. Every process has the same ones, whatever its examples."""
        weights = self.discriminative.objective.weights
        matched = MATCHING_LOSSES if self.parts.hard_negatives else ()
        return [name for name in (*matched, *(GROUNDING_LOSSES if self.parts.expression else ())) if weights[name]]

    @torch.no_grad()
    def tally(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        """Sums over examples, or over boxes, of every `parts`-th example from `part` on."""
        totals = {name: (0.0, 0.0) for name in self.names}
        for stream in self.streams.values() if totals else ():
            own = self._positions(stream)[part::parts]
            chunks = [list(own[start : start + self.batch_size]) for start in range(0, len(own), self.batch_size)]
            for positions, batch in zip(chunks, load(stream.only(self.parts), chunks), strict=True):
                for name, (total, count) in self._sums(batch.to(self.backbone.device), positions).items():
                    totals[name] = totals[name][0] + total, totals[name][1] + count
                on_batch(len(batch))
        return totals

    def _positions(self, stream: Stream) -> range:
        """Evenly spaced, the same ones each time."""
        return range(0, len(stream), -(-len(stream) // MOST_EXAMPLES) or 1)

    def _sums(self, batch: Batch, positions: list[int]) -> Tally:
        pairs = pairs_of(batch)
        if not pairs:
            return {}
        noised = add_noise_to_batch(self.backbone, batch, pairs, SampleRNG(NOISE_SEED, positions), self.noise)
        z, t, condition = noised.inputs(pairs)
        features, _ = self.backbone.features(z, t, condition, self.discriminative.adapter.config.unet_feature)
        one = torch.ones((), device=z.device)
        losses = self.discriminative.losses(features, t, noised.texts, batch, one)
        counts = {name: len(batch) if name in MATCHING_LOSSES else boxes_in(batch) for name in losses}
        return {
            name: (float(losses[name]) * (len(batch) if name in MATCHING_LOSSES else 1), counts[name])
            for name in self.names
            if name in losses
        }
