"""A data folder in the published layout from a folder of captioned images: negatives by rule, boxes by a detector.

Hard negative captions change one fact of the caption; a caption to which no rule applies gets the most similar caption
of another image instead. Hard negative images are those with the most similar captions.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import log
from pathlib import Path
from typing import Any

from dpt.claims.caption_edits import CaptionNoun, false_captions, heads_with, noun_phrases
from dpt.claims.facts import Box
from dpt.claims.judge import Detection
from dpt.data.files import reading as layout
from dpt.data.files.hard_negatives import HardNegatives, captions_of_images
from dpt.data.folder import CaptionedPicture, read_picture_folder
from dpt.data.images import read_header, read_image
from dpt.errors import DataError, UserError
from dpt.files import atomic_folder
from dpt.keyed_random import KeyedRandom

SIMILAR = 8
"""Hard negative images per caption."""

FEWEST = 2
"""Images that each part needs at least: a negative comes from another image."""

COMMON = 0.5
"""A word in more captions than this fraction does not make two of them similar."""

EXPRESSIONS = "refcoco"
"""The set of expressions to validate on."""

FindBoxes = Callable[[Path, Sequence[str]], Sequence[Detection]]
"""Detections of these nouns in an image file."""

Record = dict[str, Any]


@dataclass(frozen=True)
class FromFolderConfig:
    val_fraction: float = 0.1
    """Fraction of the images to validate on; at least two are held out."""
    seed: int = 0
    """Decides which images are held out."""
    nouns: tuple[str, ...] = ()
    """Nouns of your captions beyond COCO's classes and the shapes of rendered scenes, in the singular."""

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise UserError(f"--val_fraction must be between 0 and 1, not {self.val_fraction}")


@dataclass
class FromFolderCounts:
    """What was made."""

    images: dict[str, int] = field(default_factory=dict)
    captions: dict[str, int] = field(default_factory=dict)
    negatives: dict[str, int] = field(default_factory=dict)
    """Hard negative captions by kind; `similar` for captions of other images."""
    without_rule: int = 0
    """Captions to which no rule applied."""
    expressions: dict[str, int] = field(default_factory=dict)
    without_boxes: int = 0
    """Noun phrases whose boxes the detector did not find in the stated number."""


@dataclass(frozen=True)
class _Part:
    name: str
    """train or val."""
    rows: tuple[CaptionedPicture, ...]

    @property
    def split(self) -> str:
        return f"{self.name}2014"


def from_folder(
    pictures: Path, out: Path, config: FromFolderConfig | None = None, find_boxes: FindBoxes | None = None
) -> FromFolderCounts:
    """Write `out`; nothing is left there if that fails. Images are hard links where the file system has them."""
    config = config or FromFolderConfig()
    rows = [_tidied(row) for row in read_picture_folder(pictures)]
    parts, counts = _split(rows, config, pictures), FromFolderCounts()
    expressions: dict[str, list[tuple[Record, Record]]] = {}
    with atomic_folder(out) as folder:
        for part in parts:
            counts.images[part.name] = len(_names(part.rows))
            counts.captions[part.name] = len(part.rows)
            _place_images(pictures, folder / layout.IMAGES / part.split, _names(part.rows))
            negatives = _hard_negatives(part, config, counts)
            at = layout.ITM / layout.HARD_NEGATIVES.format(split=part.name)
            _write_json(folder / at / layout.CAPTIONS_OF_IMAGES, captions_of_images(negatives))
            for id_, row in enumerate(negatives):
                _write_json(folder / at / f"{id_:05d}.json", row.record)
            _write_json(folder / layout.CAPTIONS / f"captions_{part.split}.json", _captions_file(pictures, part))
            if find_boxes is not None:
                expressions[part.name] = _expressions(pictures, part, config, find_boxes, counts)
        if find_boxes is not None:
            _write_expressions(pictures, folder, parts, expressions, counts)
        _write_json(folder / "manifest.json", {"from_folder": asdict(config), "counts": asdict(counts)}, indent=1)
    return counts


def _tidied(row: CaptionedPicture) -> CaptionedPicture:
    return CaptionedPicture(row.file_name, " ".join(row.caption.split()), row.weight, row.where)


def _names(rows: Sequence[CaptionedPicture]) -> list[str]:
    return list(dict.fromkeys(row.file_name for row in rows))


def _split(rows: Sequence[CaptionedPicture], config: FromFolderConfig, pictures: Path) -> tuple[_Part, _Part]:
    names = _names(rows)
    if len(names) < 2 * FEWEST:
        few = f"{len(names)} image" if len(names) == 1 else f"{len(names)} images"
        raise DataError(
            f"{pictures} has {few}: matching needs at least {2 * FEWEST}, two to train on and two to validate on"
        )
    count = min(max(FEWEST, round(config.val_fraction * len(names))), len(names) - FEWEST)
    held_out = set(KeyedRandom("from folder", config.seed).sample(sorted(names), count))
    parts = [
        _Part(part, tuple(row for row in rows if (row.file_name in held_out) == (part == "val")))
        for part in ("train", "val")
    ]
    for part in parts:
        if len({row.caption.lower() for row in part.rows}) < 2:
            raise DataError(
                f"{part.rows[0].where}: all {len(part.rows)} captions of the {part.name} part are the same, "
                "and matching learns from differences: write captions that tell the images apart"
            )
    return parts[0], parts[1]


def _hard_negatives(part: _Part, config: FromFolderConfig, counts: FromFolderCounts) -> list[HardNegatives]:
    similar = _Similar(part.rows)
    own: dict[str, set[str]] = defaultdict(set)
    for row in part.rows:
        own[row.file_name].add(row.caption.lower())
    negatives = []
    for number, row in enumerate(part.rows):
        others = similar.rows(number)
        edited = [e for e in false_captions(row.caption, config.nouns) if e.text.lower() not in own[row.file_name]]
        captions, kinds = [edit.text for edit in edited], [edit.kind for edit in edited]
        if not captions:
            captions = [part.rows[other].caption for other in others[:1]]
            kinds = ["similar"] * len(captions)
            counts.without_rule += 1
        for kind in kinds:
            counts.negatives[kind] = counts.negatives.get(kind, 0) + 1
        images = tuple(dict.fromkeys(part.rows[other].file_name for other in others))[:SIMILAR]
        negatives.append(HardNegatives(row.file_name, row.caption, tuple(captions), images))
    return negatives


class _Similar:
    """Captions of other images, ordered by the words they share, rare words first."""

    def __init__(self, rows: Sequence[CaptionedPicture]) -> None:
        self.rows_of = rows
        self.words = [frozenset(re.findall(r"\w+", row.caption.lower())) for row in rows]
        self.holders: dict[str, list[int]] = defaultdict(list)
        for number, words in enumerate(self.words):
            for word in words:
                self.holders[word].append(number)

    def rows(self, number: int) -> list[int]:
        """At least one, and as many as `SIMILAR` if there are."""
        row = self.rows_of[number]
        scores: dict[int, float] = defaultdict(float)
        for word in sorted(self.words[number]):
            holders = self.holders[word]
            if len(holders) <= max(COMMON * len(self.rows_of), 2 * SIMILAR):
                for other in holders:
                    scores[other] += log(1 + len(self.rows_of) / len(holders))
        ranked = sorted(scores, key=lambda other: (-scores[other], other))
        start = KeyedRandom("from folder", row.file_name, row.caption).randrange(len(self.rows_of))
        ranked += [(start + step) % len(self.rows_of) for step in range(len(self.rows_of))]
        chosen: list[int] = []
        for other in dict.fromkeys(ranked):
            candidate = self.rows_of[other]
            if candidate.file_name != row.file_name and candidate.caption.lower() != row.caption.lower():
                chosen.append(other)
            if len(chosen) == SIMILAR:
                break
        return chosen


def _place_images(pictures: Path, folder: Path, names: Sequence[str]) -> None:
    for name in names:
        header = read_header(pictures / name, pictures)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if header.orientation != 1:  # stored upright, so that no box is ambiguous
            read_image(pictures / name, pictures)[0].save(folder / name, quality=95)
            continue
        try:
            os.link(os.path.realpath(pictures / name), folder / name)
        except OSError:
            shutil.copyfile(pictures / name, folder / name)


def _image_records(pictures: Path, rows: Sequence[CaptionedPicture]) -> dict[str, Record]:
    records = {}
    for id_, name in enumerate(_names(rows)):
        width, height = read_header(pictures / name, pictures).size
        records[name] = {"id": id_, "file_name": name, "width": width, "height": height}
    return records


def _captions_file(pictures: Path, part: _Part) -> Record:
    images = _image_records(pictures, part.rows)
    annotations = [
        {"id": id_, "image_id": images[row.file_name]["id"], "caption": row.caption}
        for id_, row in enumerate(part.rows)
    ]
    return {"info": {}, "licenses": [], "images": list(images.values()), "annotations": annotations}


def _expressions(
    pictures: Path, part: _Part, config: FromFolderConfig, find_boxes: FindBoxes, counts: FromFolderCounts
) -> list[tuple[Record, Record]]:
    """An image entry and its annotations for each noun phrase whose boxes were found in the stated number."""
    heads, images = heads_with(config.nouns), _image_records(pictures, part.rows)
    phrases_of: dict[str, dict[str, CaptionNoun]] = defaultdict(dict)
    for row in part.rows:
        phrases = noun_phrases(row.caption, heads)
        alone = Counter(phrase.noun.shape for phrase in phrases)
        for phrase in phrases:
            if alone[phrase.noun.shape] == 1:
                text = row.caption[phrase.start : phrase.head[1]]
                phrases_of[row.file_name].setdefault(text, phrase)
    made = []
    for name, phrases_by_text in phrases_of.items():
        nouns = list(dict.fromkeys(phrase.noun.shape or "" for phrase in phrases_by_text.values()))
        detections = find_boxes(pictures / name, nouns)
        for text, phrase in phrases_by_text.items():
            boxes = [each.box for each in detections if phrase.noun.matches(_Seen.of(each, phrase))]
            if not _is_stated(len(boxes), phrase):
                counts.without_boxes += 1
                continue
            span = [phrase.head[0] - phrase.start, phrase.head[1] - phrase.start]
            made.append(({**images[name], "caption": text}, {"boxes": boxes, "span": span}))
    return made


@dataclass(frozen=True)
class _Seen:
    """A detection; attributes that the detector does not read are taken from the phrase."""

    shape: str
    colour: str
    size: str
    box: Box

    @classmethod
    def of(cls, detection: Detection, phrase: CaptionNoun) -> _Seen:
        colour, size = detection.colour or phrase.noun.colour or "", detection.size or phrase.noun.size or ""
        return cls(detection.label, colour, size, detection.box)


def _is_stated(boxes: int, phrase: CaptionNoun) -> bool:
    if phrase.number is not None:
        return boxes == phrase.number
    return boxes >= 2 if phrase.plural else boxes == 1


def _write_expressions(
    pictures: Path,
    folder: Path,
    parts: Sequence[_Part],
    expressions: Mapping[str, list[tuple[Record, Record]]],
    counts: FromFolderCounts,
) -> None:
    """In MDETR's form. Expressions to validate on are of images in train2014, as in the published files."""
    first = 0
    for part, dataset, split in zip(parts, ("refall", EXPRESSIONS), ("train", "val"), strict=True):
        rows = expressions[part.name]
        counts.expressions[part.name] = len(rows)
        if not rows:
            raise DataError(
                f"the detector found no noun phrase of the {part.name} captions in the stated number: lower "
                "--detect_threshold, name your nouns with --nouns, or leave --detector out to train without boxes"
            )
        if part.name == "val":
            _place_images(
                pictures, folder / layout.IMAGES / "train2014", sorted({image["file_name"] for image, _ in rows})
            )
        _write_json(folder / layout.REC / f"finetune_{dataset}_{split}.json", _expressions_file(rows, first, dataset))
        first += len(rows)


def _expressions_file(rows: Sequence[tuple[Record, Record]], first: int, dataset: str) -> Record:
    images: list[Record] = []
    annotations: list[Record] = []
    for id_, (image, found) in enumerate(rows, first):
        images.append({**image, "id": id_, "dataset_name": dataset})
        for box in found["boxes"]:
            coco = [round(value, 3) for value in (box.x0, box.y0, box.width, box.height)]
            common = {"id": len(annotations), "image_id": id_, "category_id": 1, "iscrowd": 0}
            annotations.append(
                {**common, "bbox": coco, "area": round(box.width * box.height, 3), "tokens_positive": [found["span"]]}
            )
    return {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def _write_json(file: Path, content: Any, indent: int | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8", newline="\n")
