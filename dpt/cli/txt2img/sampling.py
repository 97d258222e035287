"""Sample prompts with one or several variants of the sampler and write the images into a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from dpt.backbone import Condition
from dpt.claims.description import parse_caption
from dpt.claims.facts import Prompt
from dpt.claims.judge import judge
from dpt.cli.txt2img.model import TunedModel
from dpt.cli.txt2img.options import Options
from dpt.data.images import to_pil
from dpt.data.scenes.world import POCKET_WORLD
from dpt.detect.oracle.oracle import Oracle
from dpt.sampling.draw import (
    Candidate,
    Request,
    SampledBatch,
    SamplingSettings,
    best,
    calls_per_picture,
    draw_latents,
    scored,
)
from dpt.sampling.hooks import Trace
from dpt.sampling.options import NO_CORRECTION
from dpt.sampling.refine import refine_batch
from dpt.score.matching import Scorer

if TYPE_CHECKING:
    from dpt.sampling.hooks import StepHook


RIGHT = "right"
"""The oracle's verdict on an image that shows its prompt."""

TRACE_COLUMNS = 6
"""Number of steps at which a trace shows the predicted x0."""


@dataclass(frozen=True)
class SamplingVariant:
    """One column of a comparison: the settings, and whether the LoRA is on."""

    name: str
    settings: SamplingSettings
    lora: bool = True


@dataclass(frozen=True)
class ImageRecord:
    """One written image, as the manifest records it."""

    file: str
    prompt: int
    index: int
    method: str = ""
    score: float | None = None
    verdict: str | None = None


def variants_for(options: Options, settings: SamplingSettings, tuned: TunedModel) -> list[SamplingVariant]:
    """One variant, or with --compare: the base model, the tuned model, and the corrected one."""
    if not options.compare:
        return [SamplingVariant("", settings)]
    plain = replace(settings, correction=NO_CORRECTION)
    variants = [SamplingVariant("base", plain, lora=False)]
    if tuned.has_lora:
        variants.append(SamplingVariant("tuned", plain))
    if settings.correction.on:
        variants.append(SamplingVariant("tuned and corrected" if tuned.has_lora else "corrected", settings))
    return variants


class ImageWriter:
    """Samples prompts with every variant from the same noise, and writes the images."""

    def __init__(
        self,
        options: Options,
        tuned: TunedModel,
        variants: Sequence[SamplingVariant],
        batch_size: int,
        folder: Path,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.options, self.tuned, self.variants = options, tuned, variants
        self.batch_size, self.folder, self.on_step = batch_size, folder, on_step
        self.numbered = options.prompts_file is not None
        adapter = tuned.adapter
        scores = options.compare or options.trace or options.n_candidates is not None
        self.scorer = Scorer(tuned.backbone, adapter) if scores and adapter is not None else None
        self.traces: list[Trace] = []

    def write(self, number: int, prompt: str) -> list[ImageRecord]:
        """Sample and write all images of a prompt, ordered as a sheet with one column per variant."""
        self.traces.clear()
        columns = [
            [
                self._save(number, prompt, place, image, variant)
                for place, image in enumerate(self._sample(prompt, variant))
            ]
            for variant in self.variants
        ]
        return [entry for row in zip(*columns, strict=True) for entry in row]

    def file_name(self, number: int, ending: str) -> str:
        """The name of a prompt's file; a single prompt needs no number."""
        return f"{number:04d}-{ending}" if self.numbered else ending

    def _sample(self, prompt: str, variant: SamplingVariant) -> Iterator[tuple[int, Tensor, float | None]]:
        """Index, image and score of each image to keep."""
        options, backbone = self.options, self.tuned.backbone
        negative = options.guidance.negative_prompt or ""
        requests = [Request(prompt, options.seed, k, negative) for k in range(options.num_candidates)]
        with self.tuned.with_lora(variant.lora):
            batches: Iterable[SampledBatch] = draw_latents(
                backbone,
                requests,
                variant.settings,
                adapter=self.tuned.adapter,
                batch_size=self.batch_size,
                on_step=self.on_step,
                make_hook=self._trace if options.trace else None,
            )
            if (refiner := self.tuned.refiner) is not None:
                strength = options.refiner.refiner_strength
                batches = (refine_batch(refiner, batch, variant.settings, strength) for batch in batches)
            if self.scorer is None or options.trace:
                for batch in batches:
                    images = zip(batch.requests, batch.decode(backbone), strict=True)
                    yield from ((request.index, image, None) for request, image in images)
                return
            batches = list(batches)
        # Scored outside the block: the adapter was trained with the LoRA on, and scores every variant that way.
        for candidate in self._kept(scored(batches, self.scorer)):
            yield candidate.request.index, candidate.decode(backbone), candidate.score

    def _kept(self, candidates: Iterator[Candidate]) -> Iterable[Candidate]:
        return candidates if self.options.n_candidates is None else best(candidates, self.options.n_samples)

    def _save(
        self, number: int, prompt: str, place: int, sampled: tuple[int, Tensor, float | None], variant: SamplingVariant
    ) -> ImageRecord:
        index, values, score = sampled
        image = to_pil(values)
        column = f"{variant.name.replace(' ', '-')}-" if variant.name else ""
        file = self.file_name(number, f"{column}{place:03d}.png")
        image.save(self.folder / file)
        verdict = oracle_verdict(image, prompt) if self.options.compare else None
        return ImageRecord(file, number, index, variant.name, score, verdict)

    def _trace(self, requests: Sequence[Request], text: Condition) -> StepHook:
        calls = calls_per_picture(self.tuned.backbone, self.variants[0].settings)
        shown = {round(at) for at in np.linspace(0, calls - 1, TRACE_COLUMNS)} if not self.traces else set()
        self.traces.append(Trace(self.tuned.backbone, text, self.scorer, shown))
        return self.traces[-1]


def oracle_verdict(image: Image.Image, prompt: str) -> str | None:
    """The oracle's verdict on an image of a scene; None for prompts and image sizes it does not know."""
    world = POCKET_WORLD
    description = parse_caption(prompt, world)
    if description is None or image.size != (world.image_size, world.image_size):
        return None
    claims = Prompt("", "", prompt, description.facts, closed=description.absent is None)
    fault = judge(claims, Oracle(world).read(np.asarray(image))).first_fault
    return RIGHT if fault is None else f"not {fault.text}"
