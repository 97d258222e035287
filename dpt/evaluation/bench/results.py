"""What is known of one picture, as a line of JSON. Every table is counted from these lines and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpt.claims.boxes import Box
from dpt.claims.detections import Detections
from dpt.claims.judge import Verdict
from dpt.claims.prompt import Prompt
from dpt.errors import UserError
from dpt.evaluation.suites.files import is_name
from dpt.records import from_plain
from dpt.untrusted import parse_json

MOST_PICTURES = 10**6
"""Of one prompt, and in all: more is a mistake."""


@dataclass(frozen=True)
class SeenObject:
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
    method: str
    prompt_id: str
    index: int
    """Which of the prompt's pictures."""
    category: str
    prompt: str
    unseen: bool
    noise_seed: int
    passed: bool | None
    """None: not judged."""
    atoms: tuple[JudgedAtom, ...]
    objects: tuple[SeenObject, ...]
    unreadable: int
    clip: float | None = None
    """Cosine of picture and prompt."""
    clipped: int = 0
    """Boxes that were cut to the picture."""
    outside: int = 0
    """Boxes with nothing of the picture in them, which do not count."""
    itm: float | None = None
    """The matching score of an adapter."""

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt_id, self.index


_OPTIONAL = {"clip": None, "clipped": 0, "outside": 0, "itm": None}


def image_result(
    method: str,
    prompt: Prompt,
    index: int,
    noise_seed: int,
    seen: Detections,
    verdict: Verdict | None,
    clip: float | None = None,
    itm: float | None = None,
) -> ImageResult:
    objects = tuple(SeenObject(o.label, o.colour, o.size, _box_corners(o.box), o.confidence) for o in seen.objects)
    atoms = tuple(JudgedAtom(atom.sort, atom.text, atom.met) for atom in verdict.atoms) if verdict else ()
    told = prompt.id, index, prompt.category, prompt.text, prompt.unseen, noise_seed
    found = atoms, objects, len(seen.unreadable), clip, seen.clipped, seen.outside
    return ImageResult(method, *told, verdict.passed if verdict else None, *found, itm=itm)


def _box_corners(box: Box) -> tuple[float, ...]:
    return tuple(float(side) for side in (box.x0, box.y0, box.x1, box.y1))


def append_results(file: Path, rows: Iterable[ImageResult]) -> None:
    with file.open("a") as lines:
        for row in rows:
            lines.write(json.dumps(_plain_result(row)) + "\n")


def _plain_result(row: ImageResult) -> dict[str, Any]:
    """Without what there is nothing to say of, so that a line with nothing new is the line it always was."""
    return {name: value for name, value in asdict(row).items() if name not in _OPTIONAL or value != _OPTIONAL[name]}


def repair(file: Path) -> int:
    """Take off a last line that was being written when the run was killed; how many characters that were."""
    if not file.exists():
        return 0
    text = _read_text(file)
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    return len(text) - len(whole)


def read_results(file: Path) -> list[ImageResult]:
    """Every line or an error that says which is no picture's; a picture that is there twice is an error too."""
    rows, known = [], set()
    text = _read_text(file)
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            content = parse_json(line)
        except ValueError:
            raise UserError(f"{file}, line {number} is not JSON: it may have been cut when a run was killed") from None
        row = from_plain(ImageResult, content, f"{file}, line {number}")
        _check_result(row, f"{file}, line {number}")
        if row.key in known:
            raise UserError(f"{file}, line {number}: picture {row.index} of {row.prompt_id} is there twice")
        known.add(row.key)
        rows.append(row)
    return rows


def _read_text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in UTF-8, at byte {error.start}") from None


def _check_result(row: ImageResult, where: str) -> None:
    """What types do not say: the id is part of a file's name, and a box has four sides."""
    if not is_name(row.prompt_id) or not 0 <= row.index < MOST_PICTURES:
        raise UserError(f"{where}: picture {row.index!r} of {row.prompt_id!r} is no picture of a benchmark")
    for one in row.objects:
        if len(one.box) != 4:
            raise UserError(f"{where}: the box of {one.label!r} has {len(one.box)} sides, not 4")
    if min(row.unreadable, row.clipped, row.outside) < 0:
        raise UserError(f"{where}: a number of boxes cannot be negative")
