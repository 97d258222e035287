"""What the benchmark commands share: the models that judge images, a benchmark's folder, and its locks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dpt.cli.common.console import warn
from dpt.data.files.reading import is_whole
from dpt.detect.registry import ORACLE, reads_colours
from dpt.embedded import clip_location
from dpt.errors import OUTSIDE_FAULTS, UserError, fail, reason
from dpt.evaluation.bench.results import LIBRARIES_KEY, OPTIONS_KEY, check_libraries
from dpt.files import atomic_file, exclusive_lock
from dpt.methods.base import check_method_name
from dpt.untrusted import MOST_IMAGES, parse_json, read_text

if TYPE_CHECKING:
    from dpt.detect.base import Detector
    from dpt.evaluation.bench.run import ExtraScores, ImageJudge, ImageRequest
    from dpt.evaluation.suites.base import Suite
    from dpt.score.clip import Clip
    from dpt.score.matching import MatchingScorer


NO_DETECTOR = "none"

ModelName = Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")]


@dataclass(frozen=True)
class JudgeOptions:
    """The models that judge and score the images."""

    detector: Annotated[str | None, tyro.conf.arg(metavar="oracle|none|FOLDER|HUB_ID")] = None
    """The judge: oracle or reader for the pocket suite; owlv2, owlvit, grounding-dino, detr, rt-detr, d-fine, or any
    checkpoint of one of these; none to sample now and judge later with `dpt bench score`. Default: the suite's own for
    `dpt bench run`; `dpt bench score` keeps the verdicts and adds only the scores of --clip, --itm and --hps."""
    colours: ModelName = None
    """A CLIP model that names the colour of each box, for suites with colours and detectors that do not read them."""
    clip: ModelName = None
    """A CLIP model that also scores each image with its prompt; the pocket's own is ckpt/pocket/clip."""
    itm: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A checkpoint whose adapter scores each image with its prompt. Not a fair test of images that were corrected
    or chosen by such a score."""
    itm_model: ModelName = None
    """The model that the adapter of --itm was trained on, if it is not that of the images: it reads them at its own
    size. An adapter of another model is a judge that the images were not made with."""
    hps: ModelName = None
    """A preference classifier of `dpt prefer train`, PickScore, or any CLIP or SigLIP, that scores each image. Use
    one that did not select what a method was tuned on."""

    def open_scores(self, suite: Suite, model: str) -> ExtraScores:
        """`model`: the base model of the images."""
        from dpt.evaluation.bench.run import ExtraScores
        from dpt.score.preference import open_preference_model

        if self.itm_model is not None and self.itm is None:
            fail("--itm_model needs --itm")
        preference = None if self.hps is None else open_preference_model(clip_location(self.hps))
        return ExtraScores(_open_clip(self.clip, suite), self._open_matching(model), preference)

    def _open_matching(self, model: str) -> MatchingScorer | None:
        if self.itm is None:
            return None
        from dpt.score.matching import MatchingScorer

        advice = ": give the model that it was trained on as --itm_model"
        return MatchingScorer.open(self.itm, model, "--itm", self.itm.resolve().name, self.itm_model, advice)

    def open(self, suite: Suite, model: str) -> ImageJudge:
        return open_judge(suite, self.detector, self.colours, self.open_scores(suite, model))


def open_judge(suite: Suite, detector: str | None, colours: str | None, extra_scores: ExtraScores) -> ImageJudge:
    from dpt.evaluation.bench.run import ImageJudge
    from dpt.evaluation.suites.base import check_classes

    if detector == NO_DETECTOR:
        if colours:
            fail("--colours has no effect with --detector none")
        return ImageJudge(None, None, extra_scores)
    if suite.detect_config is None:
        if detector or colours:
            fail(f"the suite {suite.name} is not judged: --{'detector' if detector else 'colours'} has no effect")
        if not extra_scores.identities:
            warn(f"the suite {suite.name} is not judged, and without --clip its images are not scored either")
        return ImageJudge(None, None, extra_scores)
    name = detector or suite.detector or ORACLE
    opened_detector = _open_detector(suite, name, colours)
    check_classes(suite.prompts, opened_detector.classes, f"the detector {opened_detector.identity}")
    if not reads_colours(name):
        from dpt.detect.coco import check_colours

        check_colours(opened_detector, suite.prompts)
    return ImageJudge(opened_detector, suite.detect_config, extra_scores)


def _open_detector(suite: Suite, name: str, colours: str | None) -> Detector:
    from dpt.detect.registry import check_name, open_detector

    assert suite.detect_config is not None
    if not reads_colours(name):
        if colours and suite.detect_config.coloured:
            fail(f"the suite {suite.name} has colours in its queries: --colours has no effect")
        if not colours and suite.needs_colours and not suite.detect_config.coloured:
            check_name(name)
            fail(
                f"the suite {suite.name} has claims about colours, which {name} does not read: give a CLIP that reads "
                "them, as --colours FOLDER"
            )
    if not colours:
        return open_detector(name, suite.detect_config)
    from dpt.score.clip import Clip

    return open_detector(name, suite.detect_config, Clip.open(clip_location(colours)))


def _open_clip(name: str | None, suite: Suite) -> Clip | None:
    if name is None:
        return None
    from dpt.score.clip import Clip

    clip = Clip.open(clip_location(name))
    if truncated := clip.count_truncated([prompt.text for prompt in suite.prompts]):
        total = len(suite.prompts)
        warn(f"{truncated} of {total} prompts exceed the context of {clip.identity} and are truncated for the score")
    return clip


def judge_identity(suite: Suite, judge: ImageJudge) -> dict[str, str]:
    """Everything but the image that a verdict depends on; part of the method's entry in bench.json."""
    identity = {"detector": judge.detector.identity if judge.detector else NO_DETECTOR, "suite": suite.id}
    if suite.judge:
        identity["judge"] = suite.judge
    return {**identity, **judge.extra_scores.identities, "suite_hash": suite.hash}


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
    out: Path,
    options: Mapping[str, Any],
    method: str,
    identity: Mapping[str, Any],
    libraries: Mapping[str, str] | None = None,
    continued: bool = False,
    **more: Any,
) -> None:
    """Add a method to the record. Raises if the record has other options or another identity of the method.

    Only the number of images per prompt may differ between methods and grow: complete batches are not drawn again.
    `libraries`: the versions that draw it. If one has changed since the last run, both are recorded. `continued`: the
    method has images already, drawn by unknown versions if none are recorded.
    """
    file = out / RECORD
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _record_lock(out):
            record = (
                parse_json(read_text(file)) if file.exists() else {OPTIONS_KEY: dict(options), **more, "methods": {}}
            )
            most = max(options["per_prompt"], record[OPTIONS_KEY]["per_prompt"])
            record[OPTIONS_KEY]["per_prompt"] = most
            check_same_options(options, record[OPTIONS_KEY], f"the benchmark in {out}", "; choose another --out")
            known = {"suite_hash": identity.get("suite_hash"), **record["methods"].setdefault(method, dict(identity))}
            for key in {**known, **identity}:
                if known.get(key) != identity.get(key):
                    fail(f"{out} holds results of {method} that differ in {key}; choose another --out")
            check_one_judge(record["methods"], out, ("model", *JUDGE_KEYS))
            if libraries:
                unknown = dict.fromkeys(libraries, "unknown") if continued else {}
                drawn_by = record.setdefault(LIBRARIES_KEY, {}).setdefault(method, unknown)
                for name, version in libraries.items():
                    earlier = drawn_by[name].split(", ") if name in drawn_by else []
                    drawn_by[name] = ", ".join(dict.fromkeys((*earlier, *version.split(", "))))
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


def check_same_options(options: Mapping[str, Any], earlier: Mapping[str, Any], what: str, advice: str = "") -> None:
    now, then = (_comparable({**LATER_OPTIONS, **values}) for values in (options, earlier))
    for key in {**now, **then}:
        if now.get(key) != then.get(key):
            fail(f"{what} was run with --{key} {then.get(key)!r}, this benchmark with {now.get(key)!r}{advice}")


def _comparable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without paths of models and files, which may move: their identities are compared instead. Methods may
    have other numbers of images per prompt."""
    kept = {key: value for key, value in options.items() if key not in (*JUDGE_PATHS, "per_prompt")}
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


def recorded_name(name: str) -> str:
    """METHOD+sld is the method-sld of the record."""
    return name.replace("+", "-")


def selected_methods(names: Sequence[str], record: Mapping[str, Any], folder: Path) -> list[str]:
    """All of the record by default."""
    methods = list(map(recorded_name, names))
    for name in methods:
        if name not in record["methods"]:
            fail(f"there is no method {name!r} in {folder}; there are {', '.join(record['methods'])}")
    return methods or list(record["methods"])


def _check_types(record: Mapping[str, Any], file: Path) -> None:
    options, methods = record[OPTIONS_KEY], record["methods"]
    if not (isinstance(methods, dict) and methods and all(isinstance(identity, dict) for identity in methods.values())):
        raise TypeError
    for name in methods:
        check_method_name(name)
    check_libraries(record)
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


def recorded_requests(record: Mapping[str, Any], suite: Suite, lines: Path | None = None) -> Sequence[ImageRequest]:
    """All of the record, or those of a method that may have fewer images per prompt, by its file of lines."""
    from dpt.evaluation.bench.results import read_lines
    from dpt.evaluation.bench.run import all_requests

    per_prompt = record[OPTIONS_KEY]["per_prompt"]
    if lines is not None and lines.exists():
        per_prompt = min(per_prompt, max((line.key[1] for line in read_lines(lines)), default=per_prompt - 1) + 1)
    return all_requests(suite, per_prompt)
