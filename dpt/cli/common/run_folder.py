"""A fresh folder for one run's results, and the file of prompts it reads."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path

from dpt.errors import fail
from dpt.files import NumberedFolder, numbered_folder
from dpt.untrusted import parse_json


def new_run_folder(parent: Path, text: str) -> AbstractContextManager[NumberedFolder]:
    """A folder under `parent` named after `text` and the first free number, safe against other runs."""
    return numbered_folder(parent, slug(text))


def slug(text: str, length: int = 48) -> str:
    """A readable file name made of the words of a text."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:length].strip("-") or "run"


def read_prompts(file: Path) -> list[str]:
    """In the file's order; empty lines are no prompts."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        fail(f"the prompts {file} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        fail(f"the prompts {file} are not text in UTF-8")
    prompts = [
        _prompt_of(line, f"line {number} of {file}") if file.suffix == ".jsonl" else line.strip()
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return prompts or fail(f"there is no prompt in {file}")


def _prompt_of(line: str, where: str) -> str:
    try:
        found = parse_json(line)
    except ValueError:
        fail(f"{where} is not JSON")
    prompt = found.get("prompt") if isinstance(found, dict) else None
    if not (isinstance(prompt, str) and prompt.strip()):
        fail(f'{where} has no text under "prompt"')
    return prompt.strip()
