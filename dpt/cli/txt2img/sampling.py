"""Drawing what was asked for, prompt by prompt, into a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from dpt.backbone import Condition
from dpt.claims.judge import judge
from dpt.claims.parser import parse_caption
from dpt.claims.prompt import Prompt
from dpt.cli.txt2img.model import TunedModel
from dpt.cli.txt2img.options import Options
from dpt.data.images import to_pil
from dpt.data.scenes.world import POCKET_WORLD
from dpt.detect.oracle.oracle import Oracle
from dpt.sampling.draw import Candidate, Request, SampledBatch, Settings, best, calls_per_picture, draw_latents, scored
from dpt.sampling.hooks import Trace
from dpt.sampling.options import NO_CORRECTION
from dpt.score.matching import Scorer

if TYPE_CHECKING:
    from dpt.sampling.hooks import StepHook


X0_PRED = 6
"""At how many steps a trace shows the picture that is foreseen."""


@dataclass(frozen=True)
class SamplingVariant:
    name: str
    settings: Settings
    tuned: bool = True
    """With the LoRA, if there is one."""


@dataclass(frozen=True)
class ImageRecord:
    """A picture that was kept, for the record."""

    file: str
    prompt: int
    index: int
    method: str = ""
    score: float | None = None
    verdict: str | None = None


def methods_for(options: Options, settings: Settings, trained: TunedModel) -> list[SamplingVariant]:
    """The one that was asked for, or all that can be compared: the model itself, tuned, and corrected too."""
    if not options.compare:
        return [SamplingVariant("", settings)]
    plain = replace(settings, correction=NO_CORRECTION)
    methods = [SamplingVariant("base", plain, tuned=False)]
    if trained.has_lora:
        methods.append(SamplingVariant("tuned", plain))
    if settings.correction.on:
        methods.append(SamplingVariant("tuned and corrected" if trained.has_lora else "corrected", settings))
    return methods


class ImageWriter:
    """Draws prompts by one method or several, from the same noise."""

    def __init__(
        self,
        options: Options,
        trained: TunedModel,
        methods: Sequence[SamplingVariant],
        batch_size: int,
        folder: Path,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.options, self.trained, self.methods = options, trained, methods
        self.batch_size, self.folder, self.on_step = batch_size, folder, on_step
        self.numbered = options.prompts_file is not None
        adapter = trained.adapter
        wanted = options.compare or options.trace or options.n_candidates is not None
        self.scorer = Scorer(trained.backbone, adapter) if wanted and adapter is not None else None
        self.traces: list[Trace] = []

    def draw(self, number: int, prompt: str) -> list[ImageRecord]:
        """All pictures of a prompt; in the order of a sheet with a column for each method."""
        self.traces.clear()
        rows = [
            [self._keep(number, prompt, place, one, method) for place, one in enumerate(self._drawn(prompt, method))]
            for method in self.methods
        ]
        return [entry for row in zip(*rows, strict=True) for entry in row]

    def name(self, number: int, ending: str) -> str:
        """Of a file that belongs to a prompt; of a single prompt they need no number."""
        return f"{number:04d}-{ending}" if self.numbered else ending

    def _drawn(self, prompt: str, method: SamplingVariant) -> Iterator[tuple[int, Tensor, float | None]]:
        """Number, image and score of each picture to be kept."""
        options, backbone = self.options, self.trained.backbone
        requests = [Request(prompt, options.seed, i, options.negative_prompt) for i in range(options.drawn)]
        with self.trained.tuned(method.tuned):
            batches: Iterable[SampledBatch] = draw_latents(
                backbone,
                requests,
                method.settings,
                adapter=self.trained.adapter,
                batch_size=self.batch_size,
                on_step=self.on_step,
                watch=self._watch if options.trace else None,
            )
            if self.scorer is None or options.trace:
                for drawn in batches:
                    images = zip(drawn.requests, drawn.decode(backbone), strict=True)
                    yield from ((request.index, image, None) for request, image in images)
                return
            batches = list(batches)
        # All methods are judged by one reader: the adapter, and the model as it was trained with it.
        for one in self._chosen(scored(batches, self.scorer)):
            yield one.request.index, one.decode(backbone), one.score

    def _chosen(self, candidates: Iterator[Candidate]) -> Iterable[Candidate]:
        return candidates if self.options.n_candidates is None else best(candidates, self.options.n_samples)

    def _keep(
        self, number: int, prompt: str, place: int, drawn: tuple[int, Tensor, float | None], method: SamplingVariant
    ) -> ImageRecord:
        index, image, score = drawn
        picture = to_pil(image)
        column = f"{method.name.replace(' ', '-')}-" if method.name else ""
        file = self.name(number, f"{column}{place:03d}.png")
        picture.save(self.folder / file)
        verdict = verdict_on(picture, prompt) if self.options.compare else None
        return ImageRecord(file, number, index, method.name, score, verdict)

    def _watch(self, requests: Sequence[Request], text: Condition) -> StepHook:
        calls = calls_per_picture(self.trained.backbone, self.methods[0].settings)
        shown = {round(at) for at in np.linspace(0, calls - 1, X0_PRED)} if not self.traces else set()
        self.traces.append(Trace(self.trained.backbone, text, self.scorer, shown))
        return self.traces[-1]


def verdict_on(picture: Image.Image, prompt: str) -> str | None:
    """What the oracle says of a picture of a scene; None where it cannot know the prompt or the sort of picture."""
    world = POCKET_WORLD
    described = parse_caption(prompt, world)
    if described is None or picture.size != (world.image_size, world.image_size):
        return None
    asked = Prompt("", "", prompt, described.facts, closed=described.absent is None)
    fault = judge(asked, Oracle(world).read(np.asarray(picture))).first_fault
    return "right" if fault is None else f"not {fault.text}"
