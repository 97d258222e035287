"""Relabel a user's images: rewrite the captions of a folder to match the detections, and add loss weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dpt.claims.facts import Prompt
from dpt.claims.parse import UnsupportedPrompt, parse_prompt
from dpt.claims.relabel import RelabelConfig, relabel
from dpt.claims.words import LMD_OPENING
from dpt.data.folder import CaptionedPicture, read_picture_folder
from dpt.errors import UserError
from dpt.evaluation.suites import lmd, pocket
from dpt.methods.ipr.config import DetectorConfig, WeightConfig
from dpt.methods.ipr.datasets import RelabelCounts, write_relabelled
from dpt.methods.ipr.detecting import BATCH, OpenedDetector, open_detector
from dpt.methods.ipr.folders import StageFolder, text_digest
from dpt.methods.ipr.prompts import OPEN
from dpt.records import to_plain

NOT_UNDERSTOOD = "its caption is not understood"


@dataclass(frozen=True)
class PictureFolder:
    """Images, and the prompts that their captions parse to."""

    folder: Path
    pictures: tuple[CaptionedPicture, ...]
    prompts: tuple[Prompt | None, ...]
    """None for a caption that the rule-based parser does not understand."""

    @classmethod
    def read(cls, folder: Path) -> PictureFolder:
        pictures = tuple(read_picture_folder(folder))
        prompts = tuple(_prompt(picture) for picture in pictures)
        if not any(prompts):
            example = pictures[0].caption
            raise UserError(f"none of the {len(pictures)} captions of {folder} is understood; one is {example!r}")
        return cls(folder, pictures, prompts)

    @property
    def understood(self) -> tuple[Prompt, ...]:
        return tuple(prompt for prompt in self.prompts if prompt is not None)


def _prompt(picture: CaptionedPicture) -> Prompt | None:
    try:
        return replace(parse_prompt(picture.caption).claims, id=picture.file_name, where=picture.where)
    except UnsupportedPrompt:
        return None


def detector_of(source: PictureFolder, config: DetectorConfig) -> OpenedDetector:
    """The detector of the config, or the one that reads the prompts: the oracle for rendered scenes."""
    prompts = source.understood
    scenes = bool(prompts) and all(prompt.category == "scene" for prompt in prompts)
    lmd_templates = bool(prompts) and all(prompt.text.lower().startswith(LMD_OPENING.lower()) for prompt in prompts)
    queries = pocket.DETECT if scenes else lmd.DETECT if lmd_templates else OPEN
    coloured = any(noun.colour for prompt in prompts for noun in prompt.nouns)
    return open_detector(config, "oracle" if scenes else "owlv2", queries, coloured)


def relabel_pictures(
    source: PictureFolder,
    detector: OpenedDetector,
    out: Path,
    config: RelabelConfig,
    weights: WeightConfig,
    unparsed: Literal["drop", "keep"] = "drop",
    on_done: Callable[[int], None] = lambda n: None,
) -> RelabelCounts:
    """Write OUT as an imagefolder. `unparsed`: drop or keep images whose caption the parser does not understand."""
    detector.check(source.understood)
    inputs = {
        "pictures": text_digest([[p.file_name, p.caption, p.weight] for p in source.pictures]),
        "detector": detector.identity,
        "unparsed": unparsed,
        **to_plain(config),
        **to_plain(weights),
    }
    stage = StageFolder(out, inputs)
    if stage.is_complete():
        raise UserError(f"{out} has been made from {source.folder} already: choose another --out")
    rows = list(_rows(source, detector, config, weights, unparsed, on_done))
    return write_relabelled(stage, source.folder, rows)


def _rows(
    source: PictureFolder,
    detector: OpenedDetector,
    config: RelabelConfig,
    weights: WeightConfig,
    unparsed: Literal["drop", "keep"],
    on_done: Callable[[int], None],
) -> Iterator[dict[str, Any]]:
    entries = list(zip(source.pictures, source.prompts, strict=True))
    for start in range(0, len(entries), BATCH):
        batch = entries[start : start + BATCH]
        known = [(picture.file_name, prompt) for picture, prompt in batch if prompt is not None]
        found = iter(detector.detect(source.folder, [n for n, _ in known], [p for _, p in known]) if known else [])
        for picture, prompt in batch:
            row: dict[str, Any] = {
                "file_name": picture.file_name,
                "original_prompt": picture.caption,
                "detector": detector.identity,
            }
            if prompt is None:
                kept = {"prompt": picture.caption, "weight": picture.weight, "correctness": None, "reason": "unparsed"}
                left_out = {"correctness": None, "reason": "unparsed", "skipped": NOT_UNDERSTOOD}
                yield row | (kept if unparsed == "keep" else left_out)
                continue
            detections = next(found)
            result = relabel(prompt, detections, config, detector.query_config)
            confidences = tuple(detection.confidence for detection in detections.objects)
            weight = round(picture.weight * weights.of(result.correct, result.reason, confidences), 6)
            row |= {"correctness": result.correct, "reason": result.reason}
            caption = picture.caption if result.correct else result.caption
            yield row | ({"skipped": result.skipped} if caption is None else {"prompt": caption, "weight": weight})
        on_done(len(batch))
