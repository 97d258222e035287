"""Reads the files of the published demo, and writes the folder of a correction."""

from __future__ import annotations

import configparser
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dpt.claims.facts import Box
from dpt.claims.judge import DetectConfig
from dpt.claims.layout import Edit, Layout, to_pixels
from dpt.claims.parse import ParsedPrompt
from dpt.claims.replies import layout_from_published, parsed_from_published
from dpt.errors import UserError, fail
from dpt.evaluation.contact_sheet import VISIBLE, contact_sheet
from dpt.files import atomic_folder
from dpt.methods.sld.detecting import ATTRIBUTE, QUERIES
from dpt.methods.sld.loop import CorrectionRound, LoopResult
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
            number = float(text)
        except ValueError:
            number = nan
        if not isfinite(number):
            fail(f"{self.where}: [{section}] {key} must be a number, not {text!r}")
        return number


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


REPORT, RESULT, START, STRIP = "report.json", "result.png", "start.png", "strip.png"

PLAN_SIDE = 384
"""Images of plans are enlarged to about this many pixels, so that thin lines are clear."""

CURRENT, GOAL, PAPER = (200, 40, 40), (20, 120, 50), (255, 255, 255)


def write_folder(folder: Path, result: LoopResult, prompt: str, inputs: Mapping[str, Any]) -> None:
    """Write the folder atomically. The report's `inputs` are all that the result depends on."""
    with atomic_folder(folder, replace=True) as work:
        Image.fromarray(result.rounds[0].image).save(work / START)
        for round_ in result.rounds[1:]:
            Image.fromarray(round_.image).save(work / f"round{round_.number}.png")
            drawn_plan(result, round_).save(work / f"plan{round_.number}.png")
            if round_.mask is not None:
                Image.fromarray(round_.mask.astype(np.uint8) * 255).save(work / f"mask{round_.number}.png")
        Image.fromarray(result.best.image).save(work / RESULT)
        strip(result, prompt).save(work / STRIP)
        text = json.dumps({"inputs": dict(inputs), **as_record(result)}, indent=2, ensure_ascii=False)
        (work / REPORT).write_text(f"{text}\n", encoding="utf-8")


def write_failure(folder: Path, image: np.ndarray, reason: str) -> None:
    """Write the unchanged image and the reason of the failure; another attempt replaces the folder."""
    with atomic_folder(folder, replace=True) as work:
        Image.fromarray(image).save(work / RESULT)
        text = json.dumps({"status": "failed", "reason": reason}, indent=2, ensure_ascii=False)
        (work / REPORT).write_text(f"{text}\n", encoding="utf-8")


def as_record(result: LoopResult) -> dict[str, Any]:
    return {
        "status": result.status,
        "ending": result.ending,
        "best_round": result.best.number,
        "rounds": [
            {
                "number": round_.number,
                "action": round_.action,
                "plan": round_.plan,
                "strength": round_.strength,
                "score": round(round_.score, 4),
                "faults": [atom.text for atom in round_.verdict.atoms if not atom.met],
                "objects": as_list(round_.layout),
                "goal": as_list(round_.goal),
            }
            for round_ in result.rounds
        ],
    }


def as_list(layout: Layout) -> list[list[Any]]:
    """In the published form: [["name #id", [x, y, width, height]], ...], in fractions of the image."""
    return [
        [thing.id, [round(v, 4) for v in (thing.box.x0, thing.box.y0, thing.box.width, thing.box.height)]]
        for thing in layout
    ]


def source_of(result: LoopResult, round_: CorrectionRound) -> CorrectionRound:
    """The round whose image this one edited: the latest that has all objects of its edits."""
    current = {edit.current.id: edit.current for edit in round_.edits if edit.current is not None}
    for earlier in reversed(result.rounds[: round_.number]):
        if all(thing in earlier.layout for thing in current.values()):
            return earlier
    return result.rounds[0]


def drawn_plan(result: LoopResult, round_: CorrectionRound, side: int = PLAN_SIDE) -> Image.Image:
    """The image that the round edited, enlarged, with current boxes in red and goal boxes in green."""
    source = source_of(result, round_).image
    factor = max(1, round(side / source.shape[1]))
    size = source.shape[1] * factor, source.shape[0] * factor
    picture = Image.fromarray(source).resize(size, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for edit in round_.edits:
        draw_edit(pen, edit, *size)
    return picture


def drawn_layouts(image: np.ndarray, current: Layout, goal: Layout) -> Image.Image:
    """The published panels: the current boxes on the image, the goal boxes on white."""
    side = 450
    panels = Image.new("RGB", (2 * side, 500), PAPER)
    picture = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    boxes = ((current, picture, CURRENT), (goal, Image.new("RGB", (side, side), PAPER), GOAL))
    for column, (layout, panel, colour) in enumerate(boxes):
        pen = ImageDraw.Draw(panel)
        for thing in layout:
            box = to_pixels(thing.box, side, side)
            _line(pen, _outline(box), colour)
            pen.text((box.x0 + 4, box.y0 + 4), thing.id, fill=colour, stroke_width=2, stroke_fill=PAPER)
        panels.paste(panel, (column * side, 50))
    titles = ImageDraw.Draw(panels)
    titles.text((10, 20), "current", fill=CURRENT)
    titles.text((side + 10, 20), "goal", fill=GOAL)
    return panels


def draw_edit(pen: ImageDraw.ImageDraw, edit: Edit, width: int, height: int) -> None:
    if edit.current is not None:
        box = to_pixels(edit.current.box, width, height)
        _line(pen, _outline(box), CURRENT)
        if edit.goal is None:
            _line(pen, [(box.x0, box.y0), (box.x1, box.y1)], CURRENT)
            _line(pen, [(box.x0, box.y1), (box.x1, box.y0)], CURRENT)
    if edit.goal is not None:
        box = to_pixels(edit.goal.box, width, height)
        _line(pen, _outline(box), GOAL)
        if edit.current is not None and {"move", "resize"} & set(edit.kinds):
            _line(pen, [to_pixels(edit.current.box, width, height).centre, box.centre], GOAL)
        pen.text((box.x0 + 4, box.y0 + 4), edit.goal.name, fill=GOAL, stroke_width=2, stroke_fill=PAPER)


def _line(pen: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: tuple[int, int, int]) -> None:
    """Draw a line with a white outline, so that it shows on an object of its own colour."""
    pen.line(points, fill=PAPER, width=5, joint="curve")
    pen.line(points, fill=colour, width=2, joint="curve")


def _outline(box: Box) -> list[tuple[float, float]]:
    return [(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1), (box.x0, box.y0)]


def strip(result: LoopResult, prompt: str) -> Image.Image:
    """prompt -> start -> plan -> result of every round, as one image."""
    pictures = [Image.fromarray(result.rounds[0].image)]
    captions = [f"start: {fault_text(result.rounds[0])}"]
    for round_ in result.rounds[1:]:
        pictures += [drawn_plan(result, round_, VISIBLE), Image.fromarray(round_.image)]
        captions += ["; ".join(round_.plan), fault_text(round_)]
    return contact_sheet(pictures, captions, columns=len(pictures), title=prompt)


def fault_text(round_: CorrectionRound) -> str:
    fault = round_.verdict.first_fault
    return "right" if fault is None else f"not {fault.text}"
