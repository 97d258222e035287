"""`dpt bench score`: judge existing images with another detector, or add scores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dpt.cli.bench.judges import judge_identity, open_extra_scores, open_judge
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


@dataclass(frozen=True)
class ScoreOptions:
    """Judge the images of `dpt bench run` with another detector, or add scores to its results.

    Interrupt and repeat at will. Results go to OUT/METHOD.jsonl, for `dpt bench report OUT`.
    """

    folder: tyro.conf.Positional[Path]
    out: Path
    """Folder for the results. It must not be FOLDER: the results of two detectors never share a folder."""
    detector: Annotated[str | None, tyro.conf.arg(metavar="oracle|none|FOLDER|HUB_ID")] = None
    """As for `dpt bench run`. Without it the verdicts are kept and only the scores of --clip, --itm and --hps are
    added."""
    colours: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """A CLIP model that names the colour of each box, for suites with colours and detectors that do not read them."""
    clip: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """A CLIP model that scores each image with its prompt."""
    itm: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A checkpoint whose adapter scores each image with its prompt. Not a fair test of images that were corrected
    or chosen by such a score."""
    hps: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """A preference classifier of `dpt prefer train`, PickScore, or any CLIP or SigLIP, that scores each image."""
    suite: Annotated[str | None, tyro.conf.arg(metavar="NAME=FILE")] = None
    """NAME=FILE with the new path of the suite's file, if it has been moved."""
    methods: tuple[str, ...] = ()
    """Default: all methods in FOLDER."""


def score(options: ScoreOptions) -> None:
    if not (options.detector or options.clip or options.itm or options.hps):
        fail("pass --detector to judge again, and --clip, --itm or --hps to add scores")
    if options.colours and not options.detector:
        fail("--colours needs --detector")
    if options.out.resolve() == options.folder.resolve():
        fail(f"{options.out} holds the images and their results; choose another --out")
    from dpt.records import to_plain

    record = read_record(options.folder)
    suite = recorded_suite(record, options.suite)
    model = str(record[OPTIONS_KEY]["pretrained_model_name_or_path"])
    extra_scores = open_extra_scores(suite, options.clip, options.itm, model, options.hps)
    judge = open_judge(suite, options.detector, options.colours, extra_scores) if options.detector else None
    recorded = {
        **record[OPTIONS_KEY],
        **{key: to_plain(options)[key] for key in ("detector", "colours", "clip", "itm", "hps")},
    }
    methods = selected_methods(options, record)
    for name in methods:
        score_method(name, options, record, recorded, suite, judge or extra_scores)
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
