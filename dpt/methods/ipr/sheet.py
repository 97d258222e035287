"""A contact sheet of held-out images: a row per prompt, a column per round, with boxes and relabelled captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpt.claims.boxes import Box
from dpt.claims.detections import DetectConfig, Detection, Detections, Unreadable
from dpt.claims.facts import Prompt
from dpt.claims.relabel import RelabelConfig, relabel
from dpt.evaluation.bench.results import ImageResult, read_results
from dpt.evaluation.suites.registry import spread

if TYPE_CHECKING:
    from PIL import Image

SHEET = "sheet.png"

ROWS = 8

SIDE = 240
"""Pixels of an image on the sheet, about."""

RIGHT, WRONG = (30, 130, 60), (200, 40, 40)


def write_sheet(
    folder: Path,
    names: Sequence[str],
    prompts: Sequence[Prompt],
    config: RelabelConfig,
    query_config: DetectConfig | None,
    file: Path,
) -> None:
    """The first image of evenly spread prompts, of several nouns if there are any, as measured in each round."""
    from dpt.evaluation.contact_sheet import contact_sheet

    results = {name: {line.key: line for line in read_results(folder / f"{name}.jsonl")} for name in names}
    pictures, captions = [], []
    related = [prompt for prompt in prompts if len(prompt.nouns) > 1]
    for prompt in spread(related or list(prompts), ROWS):
        for name in names:
            result = results[name][(prompt.id, 0)]
            pictures.append(_with_boxes(folder / name / f"{prompt.id}-0.png", result))
            captions.append(f"{name}: {_caption(prompt, result, config, query_config)}")
    title = "Held-out prompts, the same noise in every round. Green boxes: the image shows its prompt."
    contact_sheet(pictures, captions, columns=len(names), title=title).save(file, optimize=True)


def _caption(prompt: Prompt, result: ImageResult, config: RelabelConfig, query_config: DetectConfig | None) -> str:
    new = relabel(prompt, detections_of(result), config, query_config)
    if new.correct:
        return prompt.text
    return f"{prompt.text} -> {new.caption or new.skipped}"


def detections_of(result: ImageResult) -> Detections:
    """The stored detections; unreadable regions get an empty box, since results do not store theirs."""
    objects = (Detection(o.label, Box(*o.box), o.confidence, o.colour, o.size) for o in result.objects)
    unreadable = tuple(Unreadable(Box(0, 0, 0, 0), "unreadable") for _ in range(result.unreadable))
    return Detections(tuple(objects), unreadable)


def _with_boxes(file: Path, result: ImageResult) -> Image.Image:
    from PIL import Image, ImageDraw

    from dpt.evaluation.bench.requests import open_image

    picture = open_image(file)
    factor = max(1, round(SIDE / picture.width))
    shown = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(shown)
    colour = RIGHT if result.passed else WRONG
    for detected in result.objects:
        pen.rectangle([factor * side for side in detected.box], outline=colour, width=2)
    return shown
