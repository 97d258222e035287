"""Draws and judges the images of the demo page; knows nothing about the page itself."""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dpt.embedded import CHECKOUT, EMBEDDED_CLIP, EMBEDDED_MODELS
from dpt.errors import UserError, fail
from dpt.generation_defaults import generation_defaults
from dpt.methods.base import DiffusionConfig, GenerationConfig, Method, MethodConfig
from dpt.methods.registry import known_methods, parse_methods
from dpt.methods.sld.method import SLDConfig
from dpt.sampling.options import SamplerConfig

if TYPE_CHECKING:
    from PIL import Image

    from dpt.claims.facts import Prompt
    from dpt.detect.oracle.oracle import Oracle
    from dpt.score.clip import Clip

LONGEST_PROMPT = 400
"""Characters."""

MOST_IMAGES = 4

MOST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Drawing:
    """What a visitor fills in."""

    model: str
    methods: tuple[str, ...]
    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    images: int = 1

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            fail("type a prompt first")
        for name in ("prompt", "negative_prompt"):
            if len(getattr(self, name)) > LONGEST_PROMPT:
                fail(f"the {name.replace('_', ' ')} is longer than {LONGEST_PROMPT} characters")
        if not 1 <= self.images <= MOST_IMAGES:
            fail(f"the number of images must be from 1 to {MOST_IMAGES}, not {self.images}")
        if not 0 <= self.seed <= MOST_SEED:
            fail(f"the seed must be from 0 to {MOST_SEED:,}, not {self.seed:,}")


@dataclass(frozen=True)
class DemoImage:
    method: str
    image: Image.Image
    passed: bool | None
    """None: the rules cannot judge the prompt, or nothing reads this model's images."""
    verdict: str
    clip: float | None = None

    @property
    def caption(self) -> str:
        return self.verdict if self.clip is None else f"{self.verdict} · CLIP {self.clip:.3f}"


@dataclass
class Studio:
    """Opens a method when it is first drawn, and keeps the last few open."""

    models: Sequence[str]
    """Folders or hub ids. A visitor chooses among these only."""
    extra_methods: Sequence[str] = ()
    """NAME=PATH, for the first model."""
    num_timesteps: int = 25
    guidance_scale: float | None = None
    """Default: the model's own."""
    scheduler: str = "ddim"
    keep: int = 4
    """Methods in memory."""
    opened: OrderedDict[tuple[str, str], Method] = field(default_factory=OrderedDict)

    @cached_property
    def methods(self) -> dict[str, dict[str, MethodConfig]]:
        """Of each model, by name."""
        chosen: dict[str, dict[str, MethodConfig]] = {}
        for model in self.models:
            known = known_methods(self.num_timesteps, model)
            after = [f"{name}+sld" for name in ("ipr", "dpt", "corrected") if name in known]
            texts = [*known, *after, *(self.extra_methods if model == self.models[0] else ())]
            chosen[model] = {config.name: config for config in parse_methods(texts, self.num_timesteps, model)}
        return chosen

    def config(self, model: str, method: str) -> MethodConfig:
        """Only names that the page offers: a visitor cannot open a path."""
        if model not in self.methods or method not in self.methods[model]:
            raise UserError("this page does not offer that model or method")
        return self.methods[model][method]

    def negative_prompt(self, model: str, method: str) -> str:
        """What the method's checkpoint carries."""
        config = self.config(model, method)
        base = config.base if isinstance(config, SLDConfig) else config
        if not isinstance(base, DiffusionConfig):
            return ""
        return base.negative_prompt or generation_defaults(base.checkpoint).negative_prompt

    def method(self, model: str, name: str) -> Method:
        key = (model, name)
        if key not in self.opened:
            self.opened[key] = self.config(model, name).open(self.generation(model))
            while len(self.opened) > self.keep:
                self.opened.popitem(last=False)
        self.opened.move_to_end(key)
        return self.opened[key]

    def generation(self, model: str) -> GenerationConfig:
        sampler = SamplerConfig(self.num_timesteps, self.guidance_scale, self.scheduler)
        return GenerationConfig(model, sampler).with_defaults()

    def draw(self, drawing: Drawing) -> dict[str, list[DemoImage]]:
        """The images of each method, from the same noise."""
        from dpt.sampling.draw import Request

        requests = [
            Request(drawing.prompt, drawing.seed, index, drawing.negative_prompt) for index in range(drawing.images)
        ]
        drawn: dict[str, list[DemoImage]] = {}
        for name in dict.fromkeys(drawing.methods):
            images = list(self.method(drawing.model, name).make(requests))
            drawn[name] = [self.judged(drawing, name, image) for image in images]
        return drawn

    def judged(self, drawing: Drawing, method: str, image: Image.Image) -> DemoImage:
        import numpy as np

        from dpt.claims.judge import judge, verdict_text
        from dpt.claims.words import unknown_words
        from dpt.data.scenes.world import POCKET_WORLD, words_of

        if drawing.model not in EMBEDDED_MODELS:
            return DemoImage(method, image, None, "not judged")
        pixels = np.asarray(image)
        (cosine,) = self.clip.cosine([pixels], [drawing.prompt])
        claims = self.claims(drawing.prompt)
        if claims is None:
            unknown = unknown_words(drawing.prompt, words_of(POCKET_WORLD))
            reason = "the rules do not understand this prompt"
            if unknown:
                other = "start the page with --pretrained_model_name_or_path FOLDER"
                reason = f"{drawing.model} does not know {', '.join(unknown)}; {other}"
            return DemoImage(method, image, None, f"not judged: {reason}", cosine)
        verdict = judge(claims, self.oracle.read(pixels))
        return DemoImage(method, image, verdict.passed, verdict_text(verdict.atoms), cosine)

    @staticmethod
    def claims(prompt: str) -> Prompt | None:
        from dpt.claims.parse import UnsupportedPrompt, parse_prompt

        try:
            return parse_prompt(prompt).claims
        except UnsupportedPrompt:
            return None

    @cached_property
    def oracle(self) -> Oracle:
        from dpt.data.scenes.world import POCKET_WORLD
        from dpt.detect.oracle.oracle import Oracle

        return Oracle(POCKET_WORLD)

    @cached_property
    def clip(self) -> Clip:
        from dpt.score.clip import Clip

        return Clip.open(str(CHECKOUT / EMBEDDED_CLIP))

    def manifest(self, drawing: Drawing, drawn: Mapping[str, Sequence[DemoImage]]) -> dict[str, object]:
        """Everything needed to draw these images again."""
        from dpt.cli.common.console import versions
        from dpt.records import to_flat

        return {
            **to_flat(drawing),
            "settings": to_flat(self.generation(drawing.model)),
            "methods": {name: dict(self.method(drawing.model, name).identity) for name in drawn},
            "images": [
                {"file": f"{name}-{index}.png", "verdict": image.verdict, "clip": image.clip}
                for name, images in drawn.items()
                for index, image in enumerate(images)
            ],
            "versions": versions(),
        }

    def archive(self, drawing: Drawing, drawn: Mapping[str, Sequence[DemoImage]], file: Path) -> Path:
        """A zip file with the images and manifest.json."""
        from io import BytesIO

        with zipfile.ZipFile(file, "w") as content:
            for name, images in drawn.items():
                for index, image in enumerate(images):
                    png = BytesIO()
                    image.image.save(png, "PNG")
                    content.writestr(f"{name}-{index}.png", png.getvalue())
            content.writestr("manifest.json", json.dumps(self.manifest(drawing, drawn), indent=2) + "\n")
        return file
