"""`dpt data from-folder`: a data folder for stage 1 and stage 2 from one's own images and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dpt.data.from_folder import EXPRESSIONS, FromFolderConfig, FromFolderCounts

if TYPE_CHECKING:
    from dpt.claims.judge import Detection
    from dpt.data.from_folder import FindBoxes


@dataclass(frozen=True)
class BoxesConfig:
    """Where boxes come from."""

    detector: Annotated[str | None, tyro.conf.arg(metavar="NAME|FOLDER|HUB_ID")] = None
    """Find the boxes of the nouns in your captions with this detector: owlv2, grounding-dino, a model folder or hub id,
    or oracle for rendered scenes. Default: no boxes, so training learns matching only."""
    detect_threshold: float = 0.25
    """Boxes that score less do not count."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class FromFolderOptions:
    """Make a data folder for training from a folder of images with captions.

    Each image has a text file beside it (x.jpg, x.txt), or all are listed in metadata.jsonl. Hard negative captions
    are made by rule: colours, numbers, relations and nouns are changed. Images are linked where possible, else copied.
    """

    pictures: tyro.conf.Positional[Path]
    """The folder of images and captions."""
    out: Path
    """The data folder to write: the --data_root of training."""
    config: FromFolderConfig = field(default_factory=FromFolderConfig)
    boxes: BoxesConfig = field(default_factory=BoxesConfig)


def from_folder(options: FromFolderOptions) -> None:
    from dpt.data.from_folder import from_folder as make

    find_boxes = None if options.boxes.detector is None else box_finder(options.boxes)
    counts = make(options.pictures, options.out, options.config, find_boxes)
    print("\n".join(report(options, counts)))


def report(options: FromFolderOptions, counts: FromFolderCounts) -> list[str]:
    captions = sum(counts.captions.values())
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.negatives.items()))
    lines = [
        f"{options.out}: {counts.images['train']} images to train on, {counts.images['val']} to validate on, "
        f"{captions} captions",
        f"hard negative captions: {kinds}",
    ]
    if counts.without_rule:
        hint = "" if options.config.nouns else "; --nouns names the nouns of your captions"
        lines.append(
            f"no rule applies to {counts.without_rule} of {captions} captions: they got the most similar caption of "
            f"another image{hint}"
        )
    command = f"dpt train stage1 --data_root {options.out}"
    if options.boxes.detector is None:
        lines.append("no boxes: training learns matching only; --detector owlv2 finds some")
    else:
        found = f"{counts.expressions['train']} to train on, {counts.expressions['val']} to validate on"
        lines.append(f"referring expressions: {found}; {counts.without_boxes} noun phrases without the stated boxes")
        command += f" --dataset_name_val {EXPRESSIONS}"
    return [*lines, f"next: dpt data check {_checked(options)}", f"then: {command}"]


def _checked(options: FromFolderOptions) -> str:
    chosen = "" if options.boxes.detector is None else f" --dataset_name_val {EXPRESSIONS}"
    return f"{options.out}{chosen}"


def box_finder(config: BoxesConfig) -> FindBoxes:
    """Detects nouns in one image file at a time."""
    import numpy as np

    from dpt.claims.judge import DetectConfig
    from dpt.data.images import read_image
    from dpt.detect.base import check_finite, clip_boxes
    from dpt.detect.registry import open_detector

    assert config.detector is not None
    detector = open_detector(config.detector, DetectConfig("a photo of {a} {noun}", config.detect_threshold, nms=0.5))

    def find(file: Path, nouns: Sequence[str]) -> Sequence[Detection]:
        image = np.asarray(read_image(file)[0])
        queries = None if detector.classes is not None else [list(nouns)]
        (detections,) = detector.detect([image], queries)
        check_finite(detections, detector.identity, str(file))
        return clip_boxes(detections, image.shape[1], image.shape[0]).objects

    return find
