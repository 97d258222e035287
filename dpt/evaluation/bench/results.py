"""The results file: a line of JSON per image, from which all tables are computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import PIL.Image

from dpt.claims.facts import Box, Prompt
from dpt.claims.judge import Detections, Verdict, verdict_text
from dpt.data.images import read_image
from dpt.errors import BrokenImageError, UserError
from dpt.evaluation.suites.base import is_name
from dpt.files import atomic_file
from dpt.records import from_plain
from dpt.untrusted import MOST_IMAGES, parse_json

MOST_BOXES = 10**6

Key = tuple[str, int]
"""A prompt's id, and the index of an image of it."""

OPTIONS_KEY = "asked"
"""The key of the run's options in bench.json and results.json."""

LIBRARIES_KEY = "libraries"
"""The key of the library versions that drew each method, in the same files."""


def check_libraries(record: Mapping[str, Any]) -> None:
    """Raise a TypeError unless they are texts by method and library; older records have none."""
    by_method = record.get(LIBRARIES_KEY, {})
    if not (isinstance(by_method, dict) and all(isinstance(drawn_by, dict) for drawn_by in by_method.values())):
        raise TypeError
    if not all(isinstance(version, str) for drawn_by in by_method.values() for version in drawn_by.values()):
        raise TypeError


@dataclass(frozen=True)
class DetectedObject:
    label: str
    colour: str | None
    size: str | None
    box: tuple[float, ...]
    confidence: float


@dataclass(frozen=True)
class JudgedAtom:
    sort: str
    text: str
    met: bool


@dataclass(frozen=True)
class ImageResult:
    """Field names are the keys of METHOD.jsonl."""

    method: str
    prompt_id: str
    index: int
    """The image's number among those of its prompt."""
    category: str
    prompt: str
    unseen: bool
    noise_seed: int
    passed: bool | None
    """None: not judged."""
    atoms: tuple[JudgedAtom, ...]
    objects: tuple[DetectedObject, ...]
    unreadable: int
    clip: float | None = None
    """CLIP similarity of image and prompt."""
    clipped: int = 0
    """Boxes that were clipped to the image."""
    outside: int = 0
    """Boxes outside the image, which do not count."""
    itm: float | None = None
    """The matching score of an adapter."""
    hps: float | None = None
    """The preference score: 100 times the cosine of picture and prompt by a preference classifier."""

    @property
    def key(self) -> Key:
        return self.prompt_id, self.index

    @property
    def verdict(self) -> str:
        return "not judged" if self.passed is None else verdict_text(self.atoms)


_OPTIONAL: dict[str, Any] = {"clip": None, "clipped": 0, "outside": 0, "itm": None, "hps": None}


def image_result(
    method: str,
    prompt: Prompt,
    index: int,
    noise_seed: int,
    detections: Detections,
    verdict: Verdict | None,
    clip: float | None = None,
    itm: float | None = None,
    hps: float | None = None,
) -> ImageResult:
    return ImageResult(
        method,
        prompt.id,
        index,
        prompt.category,
        prompt.text,
        prompt.unseen,
        noise_seed,
        passed=verdict.passed if verdict else None,
        atoms=tuple(JudgedAtom(atom.sort, atom.text, atom.met) for atom in verdict.atoms) if verdict else (),
        objects=tuple(
            DetectedObject(o.label, o.colour, o.size, _corners(o.box), o.confidence) for o in detections.objects
        ),
        unreadable=len(detections.unreadable),
        clip=clip,
        clipped=detections.clipped,
        outside=detections.outside,
        itm=itm,
        hps=hps,
    )


def _corners(box: Box) -> tuple[float, ...]:
    return tuple(float(side) for side in (box.x0, box.y0, box.x1, box.y1))


def append_results(file: Path, results: Iterable[ImageResult]) -> None:
    with file.open("a") as lines:
        lines.writelines(result_line(result) for result in results)


def result_line(result: ImageResult) -> str:
    """Serialise a result; optional fields with their default value are left out."""
    fields = asdict(result)
    kept = {name: value for name, value in fields.items() if name not in _OPTIONAL or value != _OPTIONAL[name]}
    return json.dumps(kept) + "\n"


@dataclass(frozen=True)
class ResultLine:
    """A validated line of a results file, as parsed JSON."""

    fields: dict[str, Any]
    where: str
    """ "base.jsonl, line 3" """
    offset: int
    """Bytes from the start of the file."""
    text: bytes

    @property
    def key(self) -> Key:
        return self.fields["prompt_id"], self.fields["index"]

    def result(self) -> ImageResult:
        return from_plain(ImageResult, self.fields, self.where)


def read_lines(file: Path, on_repeated: Callable[[int], None] | None = None) -> Iterator[ResultLine]:
    """Iterate over the validated lines of a results file; an error names the first invalid line.

    Duplicate lines are skipped; `on_repeated` gets their number at the end. Two different lines of the same image
    are an error.
    """
    hashes: dict[Key, int] = {}
    repeated = 0
    for line in _checked_lines(file):
        if line.key not in hashes:
            hashes[line.key] = hash(line.text)
            yield line
        elif hashes[line.key] == hash(line.text):
            repeated += 1
        else:
            prompt_id, index = line.key
            raise UserError(
                f"{line.where}: image {index} of {prompt_id} has two different lines; delete {file} and run the "
                "same command again to judge its images again"
            )
    if repeated and on_repeated is not None:
        on_repeated(repeated)


def open_image(file: Path) -> PIL.Image.Image:
    if not file.exists():
        raise UserError(f"the image {file} is missing: `dpt bench run` draws it again")
    try:
        return read_image(file)[0]
    except BrokenImageError as broken:
        what = "is damaged or only half written: `dpt bench run` draws it again"
        raise UserError(f"the image {file} {what} ({broken.reason})") from None


def read_results(file: Path) -> list[ImageResult]:
    return [line.result() for line in read_lines(file)]


def repair(file: Path) -> int:
    """Remove an incomplete last line and duplicate lines; return the number of duplicates."""
    if not file.exists():
        return 0
    drop_cut_line(file)
    counts: list[int] = []
    kept = [line.text for line in read_lines(file, counts.append)]
    if counts:
        with atomic_file(file) as work:
            work.write_bytes(b"".join(kept))
    return sum(counts)


def replace_results(file: Path, results: Mapping[Key, ImageResult]) -> None:
    """Replace the lines of these images."""
    if not results:
        return
    with atomic_file(file) as work, work.open("wb") as lines:
        for line in read_lines(file):
            replacement = results.get(line.key)
            lines.write(line.text if replacement is None else result_line(replacement).encode())


def drop_cut_line(file: Path) -> None:
    """Remove the last line if a killed run left it without its end."""
    try:
        with file.open("r+b") as stream:
            end = position = stream.seek(0, 2)
            while position > 0:
                start = max(0, position - 65536)
                stream.seek(start)
                newline = stream.read(position - start).rfind(b"\n")
                position = start
                if newline >= 0:
                    position = start + newline + 1
                    break
            if position < end:
                stream.truncate(position)
    except OSError as error:
        raise _unreadable(file, error) from None


def _checked_lines(file: Path) -> Iterator[ResultLine]:
    offset = 0
    try:
        with file.open("rb") as stream:
            for number, text in enumerate(stream, start=1):
                yield _check_line(file, number, offset, text)
                offset += len(text)
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {file}: {error.strerror or error}")


def _check_line(file: Path, number: int, offset: int, text: bytes) -> ResultLine:
    where = f"{file}, line {number}"
    try:
        fields = parse_json(text.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in UTF-8, at byte {offset + error.start}") from None
    except ValueError:
        raise UserError(f"{where} is not JSON: a killed run may have left it incomplete") from None
    line = ResultLine(fields, where, offset, text)
    if not _is_plain(fields):
        line.result()  # raises with the exact reason, if there is an error
    _check_values(fields, where)
    return line


_TYPES: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "prompt_id": str,
    "index": int,
    "category": str,
    "prompt": str,
    "unseen": bool,
    "noise_seed": int,
    "passed": (bool, type(None)),
    "atoms": list,
    "objects": list,
    "unreadable": int,
    "clip": (float, type(None)),
    "clipped": int,
    "outside": int,
    "itm": (float, type(None)),
    "hps": (float, type(None)),
}

_INTEGERS = ("index", "noise_seed", "unreadable", "clipped", "outside")


def _is_plain(fields: Any) -> bool:
    """Whether a line has the right keys and types: a fast check, stricter than the exact one of `from_plain`."""
    return (
        isinstance(fields, dict)
        and all(name in fields for name in _TYPES if name not in _OPTIONAL)
        and all(name in _TYPES and isinstance(value, _TYPES[name]) for name, value in fields.items())
        and not any(isinstance(fields.get(name), bool) for name in _INTEGERS)
        and all(isfinite(fields.get(name) or 0.0) for name in ("clip", "itm", "hps"))
        and all(_is_atom(atom) for atom in fields["atoms"])
        and all(_is_object(detected) for detected in fields["objects"])
    )


def _is_atom(atom: Any) -> bool:
    return (
        isinstance(atom, dict)
        and atom.keys() == {"sort", "text", "met"}
        and isinstance(atom["sort"], str)
        and isinstance(atom["text"], str)
        and isinstance(atom["met"], bool)
    )


def _is_object(detected: Any) -> bool:
    return (
        isinstance(detected, dict)
        and detected.keys() == {"label", "colour", "size", "box", "confidence"}
        and isinstance(detected["label"], str)
        and isinstance(detected["colour"], str | None)
        and isinstance(detected["size"], str | None)
        and isinstance(detected["box"], list)
        and all(isinstance(side, float) and isfinite(side) for side in (*detected["box"], detected["confidence"]))
    )


def _check_values(fields: dict[str, Any], where: str) -> None:
    """Check values beyond their types: ids are safe file names, boxes have four sides, counts are bounded."""
    prompt_id, index = fields["prompt_id"], fields["index"]
    if not is_name(prompt_id) or not 0 <= index < MOST_IMAGES:
        raise UserError(f"{where}: image {index!r} of {prompt_id!r} is not a valid image of a benchmark")
    for detected in fields["objects"]:
        if len(detected["box"]) != 4:
            raise UserError(f"{where}: the box of {detected['label']!r} has {len(detected['box'])} sides, not 4")
    for name in ("unreadable", "clipped", "outside"):
        if not 0 <= fields.get(name, 0) <= MOST_BOXES:
            raise UserError(f"{where}: {name} must be between 0 and {MOST_BOXES:,}, not {fields[name]}")
