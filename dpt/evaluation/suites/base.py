"""A suite: prompts with claims, and the config by which detections count; suites of files of prompts without claims."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dpt.claims.facts import Claim, ColourOfBest, FewerThan, Prompt, RelationByCentres, RelationOfBest
from dpt.claims.judge import DetectConfig
from dpt.errors import UserError, fail
from dpt.untrusted import parse_json

Layout = Literal["flat", "folders"]

_HASHED_NAMES: dict[type, str] = {
    RelationByCentres: "Beside",
    RelationOfBest: "Placed",
    ColourOfBest: "Coloured",
    FewerThan: "Fewer",
}
"""Former class names, which `Suite.hash` keeps using."""


@dataclass(frozen=True)
class Suite:
    name: str
    id: str
    """The name with a version. Part of the seed of every image."""
    prompts: tuple[Prompt, ...]
    detect_config: DetectConfig | None
    """None if its images are not judged."""
    judge: str = ""
    """The name of the judge, if it differs from the suite's."""
    layout: Layout = "flat"
    detector: str | None = None
    """The default detector."""

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(prompt.category for prompt in self.prompts))

    @property
    def needs_colours(self) -> bool:
        return any(noun.colour for prompt in self.prompts for noun in prompt.nouns)

    @property
    def hash(self) -> str:
        """SHA-256 of every prompt with its claims, and of the detection config."""
        digest = hashlib.sha256(self.id.encode())
        for prompt in self.prompts:
            claims = [[_hashed_name(claim), asdict(claim)] for claim in prompt.facts]
            digest.update(json.dumps([prompt.id, prompt.category, prompt.text, claims]).encode())
        digest.update(json.dumps(asdict(self.detect_config) if self.detect_config else None).encode())
        return digest.hexdigest()


def _hashed_name(claim: Claim) -> str:
    return _HASHED_NAMES.get(type(claim), type(claim).__name__)


def image_file(layout: Layout, prompt_id: str, index: int) -> Path:
    """The path of an image within its method's folder."""
    if layout == "folders":
        return Path(prompt_id) / "samples" / f"{index:04d}.png"
    return Path(f"{prompt_id}-{index}.png")


def check_classes(prompts: Iterable[Prompt], classes: tuple[str, ...] | None, detector: str) -> None:
    """Raise if a closed-set detector lacks a noun of the prompts."""
    if classes is None:
        return
    for prompt in prompts:
        for noun in prompt.nouns:
            if noun.shape is not None and noun.shape not in classes:
                known = ", ".join(classes)
                raise UserError(f"{prompt.origin}: {detector} does not detect {noun.shape!r}; its classes are {known}")


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class SuiteLine(NamedTuple):
    number: int
    """From 1, as editors count."""
    where: str
    """ "prompts.txt, line 3" """
    text: str


def lines(file: Path) -> Iterator[SuiteLine]:
    """Iterate over the lines that are not blank."""
    for number, text in enumerate(read_text(file).splitlines(), start=1):
        if text.strip():
            yield SuiteLine(number, f"{file}, line {number}", text.strip())


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not a text file in UTF-8") from None


def parse_object(where: str, text: str) -> dict[str, Any]:
    try:
        return as_object(where, parse_json(text))
    except ValueError:
        raise UserError(f"{where} is not valid JSON; it may be incomplete") from None


def as_object(where: str, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected an object, got {content!r}")
    return content


def check_keys(where: str, content: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in content:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; known are {', '.join(known)}")


def text_of(where: str, content: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = content.get(key, default)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {key!r} must be a non-empty string, not {value!r}")
    return value.strip()


def count_of(where: str, content: Mapping[str, Any], key: str) -> int:
    value = content.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: {key!r} must be an integer >= 1, not {value!r}")
    return value


def name_of(where: str, content: Mapping[str, Any], key: str, default: str) -> str:
    """Return an id or a category, which becomes part of a file name."""
    value = content.get(key, default)
    value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(value, str) or not is_name(value):
        raise UserError(f"{where}: {key!r} is used in file names: use letters, digits, - _ and ., not {value!r}")
    return value


def is_name(text: str) -> bool:
    """Whether it can safely be part of a file name."""
    return _NAME.fullmatch(text) is not None


class UniqueIds:
    """Raises on a duplicate id."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def add(self, where: str, id_: str) -> str:
        if id_ in self._first:
            fail(f"{where}: duplicate id {id_!r}, first used in {self._first[id_]}")
        self._first[id_] = where
        return id_


COCO_CATEGORIES = ("numerical", "spatial", "semantic", "mixed", "null")

UNNAMED = "prompts"


def prompts_suite(file: Path) -> Suite:
    """Read a text file with a prompt per line, or .jsonl with objects of prompt and optional id and category."""
    ids = UniqueIds()
    prompts = []
    for number, where, text in lines(file):
        id_, category = f"{number:05d}", "prompts"
        if file.suffix == ".jsonl":
            content = parse_object(where, text)
            check_keys(where, content, ("prompt", "id", "category"))
            text = text_of(where, content, "prompt")
            id_ = name_of(where, content, "id", id_)
            category = name_of(where, content, "category", category)
        prompts.append(Prompt(ids.add(where, id_), category, text, (), closed=False, where=where))
    return _suite("prompts", file, prompts)


def coco_suite(file: Path) -> Suite:
    """Read COCO-NSS1K: a JSON list of objects with `captions` (or `caption`) and an optional `name` (or `category`).
    Other keys are ignored."""
    try:
        entries = parse_json(read_text(file))
    except ValueError:
        raise UserError(f"{file} is not valid JSON; it may be incomplete") from None
    if not isinstance(entries, list):
        raise UserError(f"{file} must be a list of prompts")
    prompts = []
    for number, entry in enumerate(entries):
        where = f"{file}, entry {number}"
        content = as_object(where, entry)
        text = text_of(where, content, "captions" if "captions" in content else "caption")
        key = next((key for key in ("name", "category") if key in content), None)
        category = UNNAMED if key is None else text_of(where, content, key)
        if category not in (*COCO_CATEGORIES, UNNAMED):
            raise UserError(f"{where}: there is no category {category!r}; there are {', '.join(COCO_CATEGORIES)}")
        prompts.append(Prompt(f"nss1k-{number:04d}", category, text, (), closed=False, where=where))
    return _suite("coco-nss1k", file, prompts)


def _suite(name: str, file: Path, prompts: list[Prompt]) -> Suite:
    if not prompts:
        raise UserError(f"{file} has no prompts")
    return Suite(name, f"{name}-1", tuple(prompts), None)
