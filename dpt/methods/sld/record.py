"""Writes the folder of a correction: images, plans drawn and in words, a strip, and report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dpt.claims.boxes import Box
from dpt.claims.edits import Edit
from dpt.claims.layout import Layout, to_pixels
from dpt.evaluation.contact_sheet import VISIBLE, contact_sheet
from dpt.files import atomic_folder
from dpt.methods.sld.loop import CorrectionRound, LoopResult

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
