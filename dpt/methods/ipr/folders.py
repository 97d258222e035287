"""A stage's output folder, which appears only when complete, and the published files in it.

Until it is complete the stage writes to a hidden folder beside it, and an interrupted stage continues there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpt.claims.facts import Box, Prompt
from dpt.claims.judge import Detection, Detections, Unreadable
from dpt.claims.relabel import RelabelledPrompt
from dpt.data.files.reading import Row, parse_line, read_lines
from dpt.errors import UserError, reason
from dpt.files import atomic_file, flush, sha256
from dpt.methods.ipr.prompts import unique_id
from dpt.records import changes
from dpt.untrusted import parse_json, read_json_object

RECORD = "stage.json"

INPUTS = "inputs.json"
"""The file of an unfinished folder that holds the inputs of its stage."""


@dataclass(frozen=True)
class StageFolder:
    """The output folder of a stage, and the inputs that determine its content, as plain JSON values."""

    path: Path
    inputs: Mapping[str, Any]

    @property
    def work(self) -> Path:
        return self.path.with_name(f".{self.path.name}.unfinished")

    def is_complete(self) -> bool:
        """Whether the stage was finished with these inputs; a UserError if it was finished with others."""
        if not (self.path / RECORD).is_file():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise UserError(f"{self.path} is there already and was not written by this stage: choose another --out")
            return False
        recorded = self.record().get("inputs")
        recorded = recorded if isinstance(recorded, dict) else {}
        if what := changes(recorded, self.inputs):
            raise UserError(f"{self.path} was made from something else ({what}): delete it, or choose another --out")
        return True

    def begin(self) -> Path:
        """The folder to write into; files of an interrupted attempt with the same inputs are still in it."""
        try:
            if self.work.exists() and not self._continues():
                shutil.rmtree(self.work)
            self.work.mkdir(parents=True, exist_ok=True)
            write_json(self.work / INPUTS, dict(self.inputs))
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {reason(error)}") from None
        return self.work

    def _continues(self) -> bool:
        try:
            return read_json_object(self.work / INPUTS) == parse_json(json.dumps(dict(self.inputs)))
        except UserError:
            return False

    def finish(self, **counts: Any) -> None:
        """Write the record, fsync all files and rename the work folder to `path`."""
        write_json(self.work / RECORD, {"inputs": dict(self.inputs), **counts})
        (self.work / INPUTS).unlink()
        for path in [*sorted(self.work.rglob("*")), self.work]:
            flush(path)
        with suppress(OSError):
            self.path.rmdir()  # empty, or else is_complete had refused it
        self.work.rename(self.path)
        flush(self.path.parent)

    def record(self) -> dict[str, Any]:
        return read_json_object(self.path / RECORD)


def digest_of(folder: Path, stage: str) -> str:
    """A hash of the record (inputs and counts) of a finished folder, which later stages store among their inputs."""
    read_stage(folder, stage)
    return sha256(folder / RECORD)[:16]


def text_digest(content: Any) -> str:
    """A hash of plain JSON values."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def read_stage(folder: Path, stage: str) -> dict[str, Any]:
    """The record of a finished stage of this name."""
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder} is not a finished folder of `dpt ipr {stage}`: it has no {RECORD}")
    record = read_json_object(folder / RECORD)
    if record.get("stage") != stage:
        raise UserError(f"{folder} is a folder of `dpt ipr {record.get('stage')}`, not of `dpt ipr {stage}`")
    return record


def write_json(file: Path, content: Any) -> None:
    replace_file(file, (json.dumps(content, indent=1) + "\n").encode())


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    replace_file(file, "".join(json.dumps(row) + "\n" for row in rows).encode())


def replace_file(file: Path, content: bytes) -> None:
    """Write the file atomically: a reader sees the old or the new content."""
    with atomic_file(file) as work:
        work.write_bytes(content)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link the file where the file system allows it, else copy it."""
    target.unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        work = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(source, work)
        work.replace(target)


DUMP = "detections.json"

METADATA = "metadata.jsonl"

SKIPPED = "skipped.jsonl"

IMAGE_FILE = re.compile(r"(?P<round>\d+)_(?P<prompt>.+)_(?P<index>\d+)\.png")


@dataclass(frozen=True)
class SampledImage:
    """Image `index` of a prompt in a round."""

    prompt: Prompt
    index: int
    round: int

    @property
    def image_id(self) -> str:
        return f"{unique_id(self.prompt)}_{self.index}"

    @property
    def file_name(self) -> str:
        return f"{self.round}_{self.image_id}.png"


def dump_entry(image: SampledImage, detections: Detections, detector: str) -> dict[str, Any]:
    """The published entry, extended by the detector's name, and by colours and sizes where it reports them."""
    first, second, relation = noun_pair(image.prompt)
    objects = detections.objects
    entry: dict[str, Any] = {
        "unique_id": unique_id(image.prompt),
        "image_id": image.image_id,
        "object_names": [detection.label for detection in objects],
        "glip_scores": [float(detection.confidence) for detection in objects],
        "glip_boxes": [[float(side) for side in _corners(detection.box)] for detection in objects],
        "obj1": first,
        "obj2": second,
        "relation": relation,
        "prompt": image.prompt.text,
        "detector": detector,
    }
    if any(detection.colour for detection in objects):
        entry["colours"] = [detection.colour for detection in objects]
    if any(detection.size for detection in objects):
        entry["sizes"] = [detection.size for detection in objects]
    if detections.unreadable:
        entry["unreadable"] = [
            {"box": [float(side) for side in _corners(region.box)], "why": region.why}
            for region in detections.unreadable
        ]
    return entry


WORDS_OF = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


def noun_pair(prompt: Prompt) -> tuple[str | None, str | None, str | None]:
    """The first two nouns and the words of their relation, as the published files name them."""
    nouns = [" ".join(word for word in (noun.colour, noun.shape) if word) for noun in prompt.nouns[:2]]
    first, second, *_ = [*nouns, None, None]
    relation = next((claim.relation for claim in prompt.facts if hasattr(claim, "relation")), None)
    return first, second, WORDS_OF[relation] if relation else "and" if second else "single"


def _corners(box: Box) -> tuple[float, float, float, float]:
    return box.x0, box.y0, box.x1, box.y1


@dataclass(frozen=True)
class DetectionDump:
    file: Path
    entries: Mapping[str, Row]

    @classmethod
    def read(cls, file: Path) -> DetectionDump:
        content = read_json_object(file)
        return cls(file, {key: Row(entry, f"{file}, entry {key!r}") for key, entry in content.items()})

    def check_detector(self, detector: str) -> None:
        """Refuse a dump that another detector made, given by the first word of its name or all of it.

        The published files do not name theirs.
        """
        for entry in self.entries.values():
            made_by = entry.text("detector") if "detector" in entry else detector
            if detector not in (made_by, made_by.split()[0]):
                raise UserError(
                    f"{self.file} was made by the detector {made_by!r}, not by {detector!r}: run `dpt ipr detect` with "
                    "that detector, or leave --detector out"
                )

    def detections(self, image: SampledImage) -> tuple[Detections, str]:
        """What was detected in an image, and by which detector."""
        if image.image_id not in self.entries:
            raise UserError(f"{self.file} has no entry {image.image_id!r}: run `dpt ipr detect` on all images first")
        entry = self.entries[image.image_id]
        if entry.text("prompt") != image.prompt.text:
            entry.fail(
                f"its prompt is {entry.text('prompt')!r}, but that of the prompt file is {image.prompt.text!r}: the "
                "prompt file has changed since the images were sampled"
            )
        return detections_of(entry), entry.text("detector") if "detector" in entry else ""


def detections_of(entry: Row) -> Detections:
    names, scores, boxes = (entry.get(key, list) for key in ("object_names", "glip_scores", "glip_boxes"))
    colours, sizes = (entry.get(key, list) if key in entry else [None] * len(names) for key in ("colours", "sizes"))
    if len({len(column) for column in (names, scores, boxes, colours, sizes)}) > 1:
        entry.fail("its lists of names, scores, boxes, colours and sizes do not have the same length")
    objects = []
    for name, score, box, colour, size in zip(names, scores, boxes, colours, sizes, strict=True):
        item = Row({"name": name, "box": box, "score": [score], "colour": colour, "size": size}, entry.where)
        (confidence,), corners = item.numbers("score", 1), item.numbers("box", 4)
        attributes = [None if item.content[key] is None else item.text(key) for key in ("colour", "size")]
        objects.append(Detection(item.text("name"), Box(*corners), confidence, *attributes))
    regions = [Row(region, entry.where) for region in (entry.get("unreadable", list) if "unreadable" in entry else [])]
    unreadable = tuple(Unreadable(Box(*region.numbers("box", 4)), region.text("why")) for region in regions)
    return Detections(tuple(objects), unreadable)


def write_dump(entries: Sequence[dict[str, Any]], file: Path) -> None:
    write_json(file, {str(entry["image_id"]): entry for entry in entries})


def metadata_row(
    image: SampledImage, relabelled: RelabelledPrompt, weight: float, detector: str, **more: Any
) -> dict[str, Any]:
    """The published row of `metadata.jsonl`, extended by the original prompt and the loss weight."""
    row = {
        "file_name": image.file_name,
        "uniq_id": unique_id(image.prompt),
        "image_id": image.image_id,
        "correctness": relabelled.correct,
        "prompt": relabelled.caption,
        "reason": relabelled.reason,
        "original_prompt": image.prompt.text,
        "weight": weight,
        "round": image.round,
        "detector": detector,
        **more,
    }
    if relabelled.caption is None:
        return {name: value for name, value in row.items() if name not in ("prompt", "weight")} | {
            "skipped": relabelled.skipped
        }
    return row


def read_metadata(file: Path) -> list[dict[str, Any]]:
    """Rows of relabelled images, checked as far as this package reads them."""
    rows = []
    for where, line in read_lines(file):
        row = parse_line(line, where)
        row.file_name("file_name")
        row.text("prompt")
        if row.content.get("correctness") not in (True, False, None):
            row.fail(f"'correctness' is true, false or null, not {row.content['correctness']!r}")
        rows.append(dict(row.content))
    if not rows:
        raise UserError(f"{file} names no image")
    return rows
