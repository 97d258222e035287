"""Prompts without facts: their pictures are drawn, shown and scored against their text, but not judged."""

from __future__ import annotations

from pathlib import Path

from dpt.errors import UserError
from dpt.evaluation.suites.reading import Ids, as_object, lines, name_of, only, parse, read_text, text_of
from dpt.evaluation.suites.base import Prompt, Suite
from dpt.plain_json import parse_json

COCO_CATEGORIES = ("numerical", "spatial", "semantic", "mixed", "null")
UNNAMED = "prompts"


def prompts_suite(file: Path) -> Suite:
    """Any text file, a prompt on each line; or, named .jsonl, an object with prompt and perhaps id and category."""
    ids = Ids()
    prompts = []
    for number, where, text in lines(file):
        id_, category = f"{number:05d}", "prompts"
        if file.suffix == ".jsonl":
            content = parse(where, text)
            only(where, content, ("prompt", "id", "category"))
            text = text_of(where, content, "prompt")
            id_ = name_of(where, content, "id", id_)
            category = name_of(where, content, "category", category)
        prompts.append(Prompt(ids.add(where, id_), category, text, (), closed=False, where=where))
    return _suite("prompts", file, prompts)


def coco_suite(file: Path) -> Suite:
    """COCO-NSS1K: a JSON list whose entries have the text under `captions` (or `caption`) and their category under
    `name` (or `category`), if they have one. What else an entry has (boxes, sizes) is not read."""
    try:
        entries = parse_json(read_text(file))
    except ValueError:
        raise UserError(f"{file} is not JSON: it may have been cut") from None
    if not isinstance(entries, list):
        raise UserError(f"{file} must be a list of prompts")
    prompts = []
    for number, entry in enumerate(entries):
        where = f"{file}, entry {number}"
        content = as_object(where, entry)
        text = text_of(where, content, "captions" if "captions" in content else "caption")
        key = next((one for one in ("name", "category") if one in content), None)
        category = UNNAMED if key is None else text_of(where, content, key)
        if category not in (*COCO_CATEGORIES, UNNAMED):
            raise UserError(f"{where}: there is no category {category!r}; there are {', '.join(COCO_CATEGORIES)}")
        prompts.append(Prompt(f"nss1k-{number:04d}", category, text, (), closed=False, where=where))
    return _suite("coco-nss1k", file, prompts)


def _suite(name: str, file: Path, prompts: list[Prompt]) -> Suite:
    if not prompts:
        raise UserError(f"{file} holds no prompt")
    return Suite(name, f"{name}-1", tuple(prompts), None)
