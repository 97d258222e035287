"""What a benchmark's folder says of itself: what was asked for, and what each method is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt.data.files.reading import is_whole
from dpt.errors import UserError, fail
from dpt.evaluation.bench.results import MOST_PICTURES
from dpt.methods.registry import check_method_name
from dpt.untrusted import parse_json

if TYPE_CHECKING:
    from dpt.evaluation.bench.requests import ImageRequest
    from dpt.evaluation.suites.base import Suite


RECORD = "bench.json"

ADDED = {"suite": "pocket", "detector": None, "colours": None, "clip": None, "itm": None}
"""Options that older records do not have, and what held then."""


def claim(out: Path, asked: Mapping[str, Any], method: str, identity: Mapping[str, Any], **more: Any) -> None:
    """Make the folder that of this benchmark; refuse one that was drawn or judged otherwise."""
    file = out / RECORD
    try:
        out.mkdir(parents=True, exist_ok=True)
        record = parse_json(file.read_text()) if file.exists() else {"asked": dict(asked), **more, "methods": {}}
        known = record["methods"].setdefault(method, dict(identity))
        same = _comparable({**ADDED, **record["asked"]}) == _comparable(asked)
        if not same or {"suite_hash": identity.get("suite_hash"), **known} != {"suite_hash": None, **identity}:
            fail(f"{out} holds a benchmark that was run otherwise; choose another --out")
        check_one_judge(record["methods"], out)
        _write(file, record)
    except (ValueError, KeyError, AttributeError, TypeError):
        fail(f"{file} is not the record of a benchmark")
    except OSError as error:
        fail(f"cannot write into {out}: {error.strerror or error}")


def check_one_judge(methods: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Verdicts of two judges, or scores of two CLIPs or adapters, are not counted in one table."""
    (first, one), *others = methods.items()
    for name, other in others:
        for key in ("detector", "judge", "suite", "clip", "itm"):
            if one.get(key) != other.get(key):
                fail(f"in {folder}, {first} and {name} differ in their {key}: they cannot share a table")


def check_same_settings(asked: Mapping[str, Any], other: Mapping[str, Any], what: str) -> None:
    one, two = (_comparable({**ADDED, **each}) for each in (asked, other))
    if unlike := [key for key in {**one, **two} if one.get(key) != two.get(key)]:
        fail(f"{what} was run with another --{unlike[0]}: {two.get(unlike[0])!r}, here {one.get(unlike[0])!r}")


def _comparable(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a method's identity tells better: a file or a model may be moved, but not be another."""
    kept = {key: value for key, value in asked.items() if key not in ("detector", "colours", "clip", "itm")}
    return {**kept, "suite": str(asked["suite"]).partition("=")[0]}


def _write(file: Path, record: Mapping[str, Any]) -> None:
    from dpt.files import atomic_file

    with atomic_file(file) as work:
        work.write_text(json.dumps(record, indent=1) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = parse_json((folder / RECORD).read_text())
        whole = {**record, "asked": {**ADDED, **record["asked"]}}
        _check_types(whole, folder / RECORD)
        return whole
    except OSError:
        raise UserError(f"{folder} is not the folder of a benchmark: it has no {RECORD}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / RECORD} is not the record of a benchmark") from None


def _check_types(record: Mapping[str, Any], file: Path) -> None:
    asked, methods = record["asked"], record["methods"]
    if not (isinstance(methods, dict) and methods and all(isinstance(one, dict) for one in methods.values())):
        raise TypeError
    for name in methods:
        check_method_name(name)
    numbers = [asked["per_prompt"], asked["seed"], 0 if asked["prompts"] is None else asked["prompts"]]
    if not (isinstance(asked["suite"], str) and _are_texts(asked["categories"]) and all(map(is_whole, numbers))):
        raise TypeError
    if min(numbers[0], numbers[2]) < 0 or numbers[0] * max(numbers[2], 1) > MOST_PICTURES:
        fail(f"{file} asks for more pictures than {MOST_PICTURES:,}, or for fewer than none")


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def pictures_of(folder: Path, record: Mapping[str, Any]) -> Path:
    """The folder that holds the methods' folders of pictures: another one, if they were only judged here.

    That must be a benchmark's too: a record that came from somewhere else shows no other folder's pictures.
    """
    where = folder / str(record.get("pictures", "."))
    if where != folder and not (where / RECORD).is_file():
        fail(f"{folder / RECORD} says that its pictures are in {where}, which is not the folder of a benchmark")
    return where


def suite_of(record: Mapping[str, Any], said: str | None = None) -> Suite:
    """The suite that was drawn; `said` where its file has been moved. Another one than was drawn is refused."""
    from dpt.evaluation.suites.registry import load, parse

    asked = record["asked"]
    if said is not None and parse(said)[0] != parse(asked["suite"])[0]:
        fail(f"what was drawn is the suite {parse(asked['suite'])[0]}, not {parse(said)[0]}")
    suite = load(said or asked["suite"], tuple(asked["categories"]), asked["prompts"], asked["seed"])
    for name, identity in record["methods"].items():
        if identity.get("suite_hash", suite.hash) != suite.hash:
            fail(f"the suite {suite.name} is not the one that {name} was drawn from: its prompts or rules have changed")
    return suite


def all_requests(record: Mapping[str, Any], suite: Suite) -> Sequence[ImageRequest]:
    from dpt.evaluation.bench.requests import all_requests

    return all_requests(suite, record["asked"]["per_prompt"])
