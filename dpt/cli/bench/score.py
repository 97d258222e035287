"""`dpt bench score`: judge existing images with another detector, or add scores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dpt.cli.bench.judges import JudgeOptions, judge_identity
from dpt.cli.bench.record import (
    JUDGE_KEYS,
    image_folder,
    method_lock,
    read_record,
    recorded_requests,
    recorded_suite,
    register_method,
    write_errors,
)
from dpt.cli.common.console import warn
from dpt.errors import fail
from dpt.evaluation.bench.results import OPTIONS_KEY

if TYPE_CHECKING:
    from dpt.evaluation.bench.judging import ExtraScores, ImageJudge
    from dpt.evaluation.suites.base import Suite


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class ScoreOptions:
    """Judge the images of `dpt bench run` with another detector, or add scores to its results.

    Interrupt and repeat at will. Results go to OUT/METHOD.jsonl, for `dpt bench report OUT`.
    """

    folder: tyro.conf.Positional[Path]
    out: Path
    """Folder for the results. It must not be FOLDER: the results of two detectors never share a folder."""
    suite: Annotated[str | None, tyro.conf.arg(metavar="NAME=FILE")] = None
    """NAME=FILE with the new path of the suite's file, if it has been moved."""
    methods: tuple[str, ...] = ()
    """Default: all methods in FOLDER."""
    judge: JudgeOptions = field(default_factory=JudgeOptions)


def score(options: ScoreOptions) -> None:
    judges = options.judge
    if not (judges.detector or judges.clip or judges.itm or judges.hps):
        fail("pass --detector to judge again, and --clip, --itm or --hps to add scores")
    if judges.colours and not judges.detector:
        fail("--colours needs --detector")
    if options.out.resolve() == options.folder.resolve():
        fail(f"{options.out} holds the images and their results; choose another --out")
    from dpt.records import to_plain

    record = read_record(options.folder)
    suite = recorded_suite(record, options.suite)
    model = str(record[OPTIONS_KEY]["pretrained_model_name_or_path"])
    judge = judges.open(suite, model) if judges.detector else judges.open_scores(suite, model)
    recorded = {**record[OPTIONS_KEY], **to_plain(judges)}
    methods = selected_methods(options, record)
    for name in methods:
        score_method(name, options, record, recorded, suite, judge)
    print(f"results: {', '.join(str(options.out / f'{name}.jsonl') for name in methods)}")
    print(f"next:    dpt bench report {options.out}{'' if 'base' in methods else f' --baseline {methods[0]}'}")


def score_method(
    name: str,
    options: ScoreOptions,
    record: Mapping[str, Any],
    recorded: Mapping[str, Any],
    suite: Suite,
    judge: ImageJudge | ExtraScores,
) -> None:
    from tqdm import tqdm

    from dpt.evaluation.bench.columns import MethodResults
    from dpt.evaluation.bench.judging import ImageJudge, JudgeImages, Rescore
    from dpt.evaluation.bench.results import repair
    from dpt.evaluation.bench.run import StoredImages, run_benchmark

    known = record["methods"][name]
    judge_images: JudgeImages
    if isinstance(judge, ImageJudge):
        method_identity = {key: value for key, value in known.items() if key not in (*JUDGE_KEYS, "suite_hash")}
        judge_images, identity = judge, {**judge_identity(suite, judge), **method_identity}
    else:
        results = MethodResults.read(options.folder / f"{name}.jsonl")
        judge_images, identity = Rescore(results, judge), {**known, **judge.identities}
    requests, pictures = recorded_requests(record, suite), image_folder(options.folder, record)
    lines = options.out / f"{name}.jsonl"
    with method_lock(options.out, name):
        # Relative, so that the two folders can be moved together.
        register_method(options.out, recorded, name, identity, pictures=os.path.relpath(pictures, options.out))
        with write_errors(options.out), tqdm(total=len(requests), desc=name, unit="image") as bar:
            if repeated := repair(lines):
                warn(f"{lines} had {repeated} duplicate lines, left by two runs at once; they were removed")
            run_benchmark(name, requests, StoredImages(pictures / name), judge_images, options.out, bar.update)


def selected_methods(options: ScoreOptions, record: Mapping[str, Any]) -> list[str]:
    for name in options.methods:
        if name not in record["methods"]:
            fail(f"there is no method {name!r} in {options.folder}; there are {', '.join(record['methods'])}")
    return list(options.methods or record["methods"])
