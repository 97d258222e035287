"""A new folder for the results of a run, and the reading of prompt files."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path

from dpt.errors import fail
from dpt.files import NumberedFolder, numbered_folder
from dpt.untrusted import parse_json, read_text


def new_run_folder(parent: Path, text: str) -> AbstractContextManager[NumberedFolder]:
    """A folder under `parent` named after `text` and the first free number, safe against other runs."""
    return numbered_folder(parent, slug(text))


def slug(text: str, length: int = 48) -> str:
    """The words of a text as a readable file name."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:length].strip("-") or "run"


def read_prompts(file: Path) -> list[str]:
    """One prompt per line, or per line of a .jsonl file the text under "prompt". Blank lines are skipped."""
    try:
        lines = read_text(file).split("\n")  # not splitlines: a prompt may hold U+2028, a form feed and the like
    except OSError as error:
        fail(f"cannot read the prompts {file}: {error.strerror}")
    prompts = [
        _jsonl_prompt(line, f"{file}, line {number}") if file.suffix == ".jsonl" else line.strip()
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return prompts or fail(f"{file} holds no prompt")


def _jsonl_prompt(line: str, where: str) -> str:
    try:
        row = parse_json(line)
    except ValueError as error:
        fail(f"{where}, is not valid JSON: {error}")
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not (isinstance(prompt, str) and prompt.strip()):
        fail(f'{where}, has no text under "prompt"')
    return prompt.strip()
