"""SLD as a method: images of another method, corrected."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dpt.claims.judge import DetectConfig
from dpt.claims.parse import ParsedPrompt, parse_prompt
from dpt.detect.registry import NOISY_ORACLE, ORACLE
from dpt.errors import UserError
from dpt.methods.base import BASE, DiffusionConfig, DiffusionMethod, GenerationConfig, check_method_name
from dpt.methods.sld.detecting import QUERIES
from dpt.methods.sld.planner import Planner, RulePlanner
from dpt.methods.sld.settings import EngineSettings, LoopSettings

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from dpt.backbone import Backbone
    from dpt.claims.facts import Noun
    from dpt.claims.instructions import Instruction
    from dpt.claims.layout import Layout
    from dpt.detect.base import Detector, Image
    from dpt.detect.masks import Segmenter
    from dpt.methods.sld.engine import ObjectSource
    from dpt.methods.sld.loop import CorrectionLoop, LoopResult
    from dpt.methods.sld.pipelines import Editor, EditorKind, Refiner
    from dpt.sampling.draw import Request

SUFFIX = "+sld"
"""METHOD+sld is METHOD, then SLD."""


def default_masks(detector: str) -> str:
    """Masks of rendered objects where the detector reads rendered scenes, ellipses in the boxes of others."""
    return ORACLE if detector in (ORACLE, NOISY_ORACLE) else "ellipse"


def default_readings(detector: str) -> int:
    """The oracle is exact: one reading. Other detectors err, so five readings vote."""
    return 1 if detector == ORACLE else 5


@dataclass(frozen=True)
class SLDConfig:
    name: str = "sld"
    base: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(BASE))
    """The method whose images are corrected."""
    detector: str = ORACLE
    masks: str = ORACLE
    """oracle, box, ellipse, or a SAM model."""
    readings: int | None = None
    """Readings of an image on which the detector votes; None: the detector's default."""
    loop: LoopSettings = field(default_factory=LoopSettings)
    strength: float | None = None
    """One strength for all rounds instead of the loop's."""

    def __post_init__(self) -> None:
        check_method_name(self.name)

    def open(self, generation: GenerationConfig) -> SLDMethod:
        return self.after(self.base.open(generation), generation)

    def after(self, base: DiffusionMethod, generation: GenerationConfig) -> SLDMethod:
        """SLD with a base method that is open already."""
        from dpt.detect.masks import open_segmenter
        from dpt.detect.registry import open_detector

        loop = self.loop if self.strength is None else replace(self.loop, strengths=(self.strength,))
        corrector = Corrector(
            base.backbone,
            open_detector(self.detector, QUERIES),
            open_segmenter(self.masks),
            EngineSettings(num_timesteps=generation.sampler.num_timesteps),
            loop,
            generation.guidance_scale,
            readings=default_readings(self.detector) if self.readings is None else self.readings,
        )
        return SLDMethod(base, corrector)


@dataclass
class Corrector:
    """The components of SLD, which correct an image of a parsed prompt."""

    backbone: Backbone
    detector: Detector
    segmenter: Segmenter
    engine: EngineSettings
    loop: LoopSettings
    guidance_scale: float
    queries: DetectConfig = QUERIES
    planner: Planner = field(default_factory=RulePlanner)
    readings: int = 1
    """Shifted and flipped readings of an image that vote on what it shows. With more than one, an image counts as
    wrong only if all views together say so."""
    editor: tuple[EditorKind, Any, str] | None = None
    """Makes the edits instead of the engine: its kind, a pipeline of diffusers, and its identity."""
    refiner: Refiner | None = None
    calls: int = 0
    """Batch rows that the network has computed so far; instruction pipelines and the refiner are not counted."""

    def use_queries(self, config: DetectConfig) -> None:
        """Detect with other queries and thresholds from now on."""
        from dpt.detect.registry import with_config

        self.queries, self.detector = config, with_config(self.detector, config)

    @property
    def identity(self) -> dict[str, Any]:
        from dpt.records import to_plain

        return {
            "detector": self.detector.identity,
            "masks": self.segmenter.identity,
            "planner": self.planner.identity,
            "engine": to_plain(self.engine),
            "loop": to_plain(self.loop),
            **({"readings": self.readings} if self.readings != 1 else {}),
            **({"editor": f"{self.editor[0]} {self.editor[2]}"} if self.editor else {}),
            **({"refiner": f"{self.refiner.identity} {self.refiner.strength:g}"} if self.refiner else {}),
        }

    def correct(
        self,
        image: Image,
        parsed: ParsedPrompt,
        seed: int,
        redraw: bool = True,
    ) -> LoopResult:
        """`redraw`: whether the image may be sampled again with another seed."""
        self.check_known(parsed.nouns)
        return self.make_loop(redraw).run(image, parsed, seed)

    def follow(self, image: Image, instruction: Instruction, seed: int) -> LoopResult:
        """Edit by an instruction: one goal layout, failed rounds repeated from the start with another seed."""
        from dpt.claims.layout import layout_of

        self.check_known(instruction.nouns)
        loop = self.make_loop(redraw=False)
        parsed = ParsedPrompt(instruction.text, "llm", instruction.nouns)
        start = layout_of(loop.detect(image, parsed.nouns), image.shape[1], image.shape[0])
        return self.reach(image, instruction.apply(start), parsed, seed)

    def check_known(self, nouns: Sequence[Noun]) -> None:
        """Raise if the detector cannot see an object: no edit could be checked."""
        classes = self.detector.classes
        unknown = next((n.shape for n in nouns if classes is not None and n.shape and n.shape not in classes), None)
        if unknown is not None:
            known = ", ".join(classes or ())
            raise UserError(f"{self.detector.identity} does not detect {unknown!r}; its classes are {known}")

    def reach(self, image: Image, goal: Layout, parsed: ParsedPrompt, seed: int) -> LoopResult:
        """Edit until the layout matches the goal. The prompt of the edits describes the objects of the goal."""
        from dpt.claims.layout import layout_verdict

        loop = self.make_loop(redraw=False)
        described = replace(parsed, text=self.describe(goal))
        loop.controller = lambda parsed, layout: goal
        loop.verdict = lambda layout: layout_verdict(goal, layout)
        loop.restart = True
        return loop.run(image, described, seed)

    @staticmethod
    def describe(goal: Layout) -> str:
        """The objects of a layout as a prompt."""
        from collections import Counter

        from dpt.claims.words import NUMBERS, plural, with_article

        counts = Counter(
            " ".join(word for word in (thing.noun.colour, thing.noun.shape) if word) for thing in goal if thing.readable
        )
        groups = (
            with_article(name) if n == 1 else f"{NUMBERS[n] if n < len(NUMBERS) else n} {plural(name)}"
            for name, n in counts.items()
        )
        return " and ".join(groups)

    def make_loop(self, redraw: bool) -> CorrectionLoop:
        from dpt.methods.sld.detecting import VIEWS, NounDetector, RepeatedReadings
        from dpt.methods.sld.loop import CorrectionLoop
        from dpt.methods.sld.objects import DrawnObjects
        from dpt.sampling.draw import SamplingSettings

        sampling = SamplingSettings(self.engine.num_timesteps, self.guidance_scale)
        once = NounDetector(self.detector, self.queries)
        detect = RepeatedReadings(once, self.readings)
        objects = DrawnObjects(self.backbone, detect, self.segmenter, sampling, on_calls=self._count)
        engine, refiner = self._editor(objects), self.refiner
        return CorrectionLoop(
            detect,
            lambda image, edits, parsed, strength, seed: engine.edit(
                image, edits, parsed.text, seed, strength, parsed.background
            ),
            objects.draw_prompt if redraw else None,
            self.loop,
            self.planner.plan,
            confirm=RepeatedReadings(once, len(VIEWS)) if self.readings > 1 else None,
            refine=None if refiner is None else lambda image, parsed, seed: refiner(image, parsed.text, seed),
        )

    def _editor(self, objects: ObjectSource) -> Editor:
        from dpt.methods.sld.engine import EditEngine
        from dpt.methods.sld.pipelines import InpaintingEditor, InstructionEditor

        if self.editor is not None and self.editor[0] == "instruct":
            return InstructionEditor(self.editor[1], self.engine.num_timesteps)
        engine = (self.backbone, self.segmenter, objects, self.engine, self.guidance_scale, self._count)
        return EditEngine(*engine) if self.editor is None else InpaintingEditor(self.editor[1], *engine)

    def _count(self, calls: int) -> None:
        self.calls += calls


@dataclass(frozen=True)
class SLDMethod:
    base: DiffusionMethod
    corrector: Corrector
    unsupported: set[str] = field(default_factory=set)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**self.base.identity, "sld": self.corrector.identity}

    def make(self, requests: Sequence[Request]) -> Iterator[PILImage.Image]:
        return self.repair(requests, self.base.make(requests))

    def repair(self, requests: Sequence[Request], pictures: Iterable[PILImage.Image]) -> Iterator[PILImage.Image]:
        """Correct the images that the base method drew for these requests."""
        import numpy as np
        from PIL import Image as PILImage

        from dpt.backbone.rng import derived_seed

        for request, picture in zip(requests, pictures, strict=True):
            parsed = self._parsed(request.prompt)
            if parsed is None:
                yield picture
                continue
            seed = derived_seed(request.seed, request.index, "sld")
            yield PILImage.fromarray(self.corrector.correct(np.asarray(picture), parsed, seed).best.image)

    def _parsed(self, prompt: str) -> ParsedPrompt | None:
        try:
            parsed = parse_prompt(prompt)
            self.corrector.check_known(parsed.nouns)
            return parsed
        except UserError as reason:
            if prompt not in self.unsupported:
                self.unsupported.add(prompt)
                warnings.warn(f"left as it is: {reason}", UserWarning, stacklevel=2)
            return None


@dataclass(frozen=True)
class RepairOfDrawn:
    """SLD on images that its base method has drawn already."""

    method: SLDMethod
    drawn: Callable[[Request], PILImage.Image]

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.method.identity

    def make(self, requests: Sequence[Request]) -> Iterator[PILImage.Image]:
        return self.method.repair(requests, map(self.drawn, requests))
