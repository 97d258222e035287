"""A benchmark's folder: bench.json with the options and each method's identity, and locks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt.data.files.reading import is_whole
from dpt.errors import OUTSIDE_FAULTS, UserError, fail, reason
from dpt.evaluation.bench.results import OPTIONS_KEY
from dpt.files import atomic_file, exclusive_lock
from dpt.methods.diffusion import check_method_name
from dpt.untrusted import MOST_IMAGES, parse_json, read_text

if TYPE_CHECKING:
    from dpt.evaluation.bench.requests import ImageRequest
    from dpt.evaluation.suites.base import Suite


RECORD = "bench.json"

LATER_OPTIONS = {"suite": "pocket", "detector": None, "colours": None, "clip": None, "itm": None, "hps": None}
"""Options that older records lack, with their former values."""

JUDGE_KEYS = ("detector", "judge", "suite", "clip", "itm", "hps")

JUDGE_PATHS = ("detector", "colours", "clip", "itm", "itm_model", "hps")

LOCK_PATIENCE = 10.0
"""Seconds to wait for another command that is writing bench.json."""


@contextmanager
def write_errors(out: Path) -> Iterator[None]:
    """Report a full or read-only disk as a user error. Nothing written before is lost."""
    try:
        yield
    except OSError as error:
        where = error.filename or out
        resumes = "; the same command then resumes" if error.errno in OUTSIDE_FAULTS else ""
        fail(f"cannot write {where}: {reason(error)}{resumes}")


@contextmanager
def method_lock(out: Path, method: str) -> Iterator[None]:
    """Lock the results of this method in this folder against other commands."""
    message = f"another `dpt bench` command is writing {method} in {out}; wait for it or choose another --out"
    with ExitStack() as stack:
        with write_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_lock(out / f".{method}.lock", message))
        yield


@contextmanager
def _record_lock(out: Path) -> Iterator[None]:
    """Lock bench.json, which commands for different methods share. Waits up to LOCK_PATIENCE."""
    end = time.monotonic() + LOCK_PATIENCE
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(
                    exclusive_lock(out / ".bench.lock", f"another `dpt bench` command is writing {out / RECORD}")
                )
                break
            except UserError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
        yield


def register_method(
    out: Path, options: Mapping[str, Any], method: str, identity: Mapping[str, Any], **more: Any
) -> None:
    """Add a method to the record. Raises if the record has other options or another identity of the method."""
    file = out / RECORD
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _record_lock(out):
            record = (
                parse_json(read_text(file)) if file.exists() else {OPTIONS_KEY: dict(options), **more, "methods": {}}
            )
            known = record["methods"].setdefault(method, dict(identity))
            same = _comparable({**LATER_OPTIONS, **record[OPTIONS_KEY]}) == _comparable(options)
            if not same or {"suite_hash": identity.get("suite_hash"), **known} != {"suite_hash": None, **identity}:
                fail(f"{out} holds a benchmark that was run with other options; choose another --out")
            check_one_judge(record["methods"], out, ("model", *JUDGE_KEYS))
            with atomic_file(file) as work:
                work.write_text(json.dumps(record, indent=1) + "\n")
    except (ValueError, KeyError, AttributeError, TypeError):
        fail(f"{file} is not the record of a benchmark")
    except OSError as error:
        fail(f"cannot write into {out}: {error.strerror or error}")


def recorded_models(out: Path) -> set[str]:
    """The hashes of base models in the folder's record; none if there is no valid one."""
    try:
        methods = parse_json(read_text(out / RECORD))["methods"].values()
        return {str(identity["model"]) for identity in methods if "model" in identity}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, UserError):
        return set()  # register_method reports what is wrong with it


def check_one_judge(methods: Mapping[str, Mapping[str, Any]], folder: Path, keys: Sequence[str] = JUDGE_KEYS) -> None:
    """Raise if methods were judged or scored by different models, and so cannot share a table."""
    (first, first_identity), *others = methods.items()
    for name, identity in others:
        for key in keys:
            unknown = key == "model" and (key not in first_identity or key not in identity)
            if first_identity.get(key) != identity.get(key) and not unknown:
                fail(f"in {folder}, {first} and {name} differ in their {key} and cannot share a table")


def check_same_options(options: Mapping[str, Any], earlier: Mapping[str, Any], what: str) -> None:
    now, then = (_comparable({**LATER_OPTIONS, **values}) for values in (options, earlier))
    for key in {**now, **then}:
        if now.get(key) != then.get(key):
            fail(f"{what} was run with --{key} {then.get(key)!r}, this benchmark with {now.get(key)!r}")


def _comparable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without paths of models and files, which may move: their identities are compared instead."""
    kept = {key: value for key, value in options.items() if key not in JUDGE_PATHS}
    return {**kept, "suite": str(options["suite"]).partition("=")[0]}


def read_record(folder: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = parse_json(read_text(folder / RECORD))
        complete = {**record, OPTIONS_KEY: {**LATER_OPTIONS, **record[OPTIONS_KEY]}}
        _check_types(complete, folder / RECORD)
        return complete
    except OSError:
        raise UserError(
            f"{folder} is not the folder of a benchmark, as `dpt bench run --out` writes it: it has no {RECORD}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / RECORD} is not the record of a benchmark") from None


def _check_types(record: Mapping[str, Any], file: Path) -> None:
    options, methods = record[OPTIONS_KEY], record["methods"]
    if not (isinstance(methods, dict) and methods and all(isinstance(identity, dict) for identity in methods.values())):
        raise TypeError
    for name in methods:
        check_method_name(name)
    numbers = [options["per_prompt"], options["seed"], 0 if options["prompts"] is None else options["prompts"]]
    if not (isinstance(options["suite"], str) and _are_texts(options["categories"]) and all(map(is_whole, numbers))):
        raise TypeError
    per_prompt, _, prompts = numbers
    if min(per_prompt, prompts) < 0 or per_prompt * max(prompts, 1) > MOST_IMAGES:
        fail(f"{file} has an invalid number of images: it must be from 0 to {MOST_IMAGES:,}")


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def image_folder(folder: Path, record: Mapping[str, Any]) -> Path:
    """The folder with the images of the methods: that of another benchmark if this one only judged them.

    An untrusted record must not expose arbitrary folders, so the other folder must be a benchmark's too.
    """
    where = folder / str(record.get("pictures", "."))
    if where != folder and not (where / RECORD).is_file():
        fail(f"{folder / RECORD} names the folder of images {where}, which is not the folder of a benchmark")
    return where


def recorded_suite(record: Mapping[str, Any], moved_to: str | None = None) -> Suite:
    """Load the suite of the record. Raises if its hash has changed. `moved_to` is NAME=FILE for a moved file."""
    from dpt.evaluation.suites.registry import load, parse

    options = record[OPTIONS_KEY]
    if moved_to is not None and parse(moved_to)[0] != parse(options["suite"])[0]:
        fail(f"the images are of the suite {parse(options['suite'])[0]}, not {parse(moved_to)[0]}")
    suite = load(moved_to or options["suite"], tuple(options["categories"]), options["prompts"], options["seed"])
    for name, identity in record["methods"].items():
        if identity.get("suite_hash", suite.hash) != suite.hash:
            fail(f"the suite {suite.name} has changed since {name} was run: its prompts or rules differ")
    return suite


def recorded_requests(record: Mapping[str, Any], suite: Suite) -> Sequence[ImageRequest]:
    from dpt.evaluation.bench.requests import all_requests

    return all_requests(suite, record[OPTIONS_KEY]["per_prompt"])
