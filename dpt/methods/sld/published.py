"""Reads the files of the published demo: its JSON list of images, and its .ini of settings."""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpt.claims.detections import DetectConfig
from dpt.claims.layout import Layout
from dpt.claims.parse import ParsedPrompt
from dpt.claims.replies import layout_from_published, parsed_from_published
from dpt.errors import UserError, fail
from dpt.methods.sld.detecting import ATTRIBUTE, QUERIES
from dpt.methods.sld.settings import EngineSettings, LoopSettings
from dpt.untrusted import read_json, read_text

REQUIRED = ("input_fname", "output_dir", "prompt")

OPTIONAL = ("generator", "llm_parsed_prompt", "llm_layout_suggestions")

THRESHOLDS = ("attr_detection_threshold", "prim_detection_threshold", "nms_threshold")

SLD_KEYS = (*THRESHOLDS, "default_seed", "frozen_step_ratio", "num_rounds", "sam_refine_dilate")

WITHOUT_EFFECT = {
    "inv_seed": "pictures are encoded to the mean, without noise",
    "bg_seed": "all noise follows from default_seed",
    "fg_seed": "all noise follows from default_seed",
    "diffedit_guidance_scale": "attributes are changed by the model itself: --guidance_scale",
    "diffedit_inpaint_strength": "attributes are changed by the model itself: --strength",
}

OPENAI_KEYS = ("model", "api_key", "organization")


@dataclass(frozen=True)
class DemoEntry:
    """One image of the JSON file."""

    number: int
    input_fname: str
    output_dir: str
    prompt: str
    generator: str | None = None
    llm_parsed_prompt: Mapping[str, Any] | None = None
    llm_layout_suggestions: Any = None

    @property
    def parsed(self) -> ParsedPrompt | None:
        return None if self.llm_parsed_prompt is None else parsed_from_published(self.llm_parsed_prompt, self.prompt)

    def goal(self, current: Layout) -> Layout | None:
        """The suggested layout; its objects keep the ids of current ones with the same name."""
        if self.llm_layout_suggestions is None:
            return None
        nouns = {noun.shape or "" for noun in self.parsed.nouns} if self.parsed else set()
        return layout_from_published(self.llm_layout_suggestions, current, nouns)


def read_entries(file: Path) -> list[DemoEntry]:
    content = read_json(file)
    if not isinstance(content, list) or not content:
        fail(f"{file} must hold a list of pictures, each an object with {', '.join(REQUIRED)}")
    return [_entry(file, number, item) for number, item in enumerate(content)]


def _entry(file: Path, number: int, item: Any) -> DemoEntry:
    where = f"{file}: entry {number}"
    if not isinstance(item, dict):
        fail(f"{where} must be an object with {', '.join(REQUIRED)}, not {item!r}")
    unknown = sorted(set(item) - {*REQUIRED, *OPTIONAL})
    if unknown:
        fail(f"{where}: unknown key {unknown[0]!r}; known are {', '.join((*REQUIRED, *OPTIONAL))}")
    for key in REQUIRED:
        if not isinstance(item.get(key), str) or not item[key].strip():
            fail(f"{where}: {key!r} must be a text")
    for key in ("input_fname", "output_dir"):
        path = Path(item[key])
        if path.is_absolute() or ".." in path.parts:
            fail(f"{where}: {key!r} must stay inside its folder: {item[key]!r}")
    parsed = item.get("llm_parsed_prompt")
    if parsed is not None and not isinstance(parsed, dict):
        fail(f"{where}: 'llm_parsed_prompt' must be an object or null")
    entry = DemoEntry(number, **{key: value for key, value in item.items() if value is not None})
    try:
        _ = entry.parsed
        entry.goal(())
    except UserError as error:
        fail(f"{where}: {error}")
    return entry


@dataclass(frozen=True)
class DemoConfig:
    """The .ini file. Thresholds of a generator's section fall back to those of [SLD]."""

    sections: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    where: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        return int(self._number("SLD", "default_seed", 78))

    @property
    def llm_model(self) -> str:
        return self.sections.get("openai", {}).get("model", "")

    @property
    def key(self) -> str | None:
        return self.sections.get("openai", {}).get("api_key")

    @property
    def loop(self) -> LoopSettings:
        """A cell follows its trajectory for `frozen_step_ratio` of the steps: from there it is denoised again."""
        settings = LoopSettings()
        if "num_rounds" in self.sections.get("SLD", {}):
            settings = LoopSettings(int(self._number("SLD", "num_rounds", 1)), settings.strengths)
        if "frozen_step_ratio" in self.sections.get("SLD", {}):
            ratio = min(max(self._number("SLD", "frozen_step_ratio", 0.5), 0.0), 0.99)
            settings = LoopSettings(settings.max_rounds, (1 - ratio,))
        return settings

    @property
    def engine(self) -> EngineSettings:
        dilate = self._number("SLD", "sam_refine_dilate", 2 * EngineSettings.margin + 1)
        return EngineSettings(margin=max(0, int(dilate) // 2))

    def queries(self, generator: str | None) -> DetectConfig:
        section = generator if generator in self.sections else "SLD"

        def threshold(key: str, default: float) -> float:
            return self._number(section or "SLD", key, self._number("SLD", key, default))

        attribute = threshold("attr_detection_threshold", 0.6)
        bare, nms = threshold("prim_detection_threshold", 0.2), threshold("nms_threshold", 0.5)
        return DetectConfig(QUERIES.query, bare, thresholds=((ATTRIBUTE, attribute),), nms=nms)

    def _number(self, section: str, key: str, default: float) -> float:
        text = self.sections.get(section, {}).get(key)
        if text is None:
            return default
        try:
            return float(text)
        except ValueError:
            fail(f"{self.where}: [{section}] {key} must be a number, not {text!r}")


def read_config(file: Path) -> DemoConfig:
    """Quotes around values are dropped; a key that is not known is an error that names it."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(read_text(file))
    except OSError as error:
        fail(f"cannot read the config {file}: {error.strerror}")
    except configparser.Error as error:
        fail(f"{file} is no .ini file: {' '.join(str(error).split())}")
    sections = {name: {k: v.strip().strip("\"'") for k, v in parser[name].items()} for name in parser.sections()}
    warnings = []
    for name, values in sections.items():
        known = OPENAI_KEYS if name == "openai" else (*SLD_KEYS, *WITHOUT_EFFECT) if name == "SLD" else THRESHOLDS
        unknown = sorted(set(values) - set(known))
        if unknown:
            fail(f"{file}: [{name}] has no key {unknown[0]!r}; its keys are {', '.join(known)}")
        warnings += [f"{file}: {key} has no effect: {WITHOUT_EFFECT[key]}" for key in values if key in WITHOUT_EFFECT]
    config = DemoConfig(sections, str(file), tuple(warnings))
    _ = (config.seed, config.loop, config.engine, *(config.queries(name) for name in sections))
    return config
