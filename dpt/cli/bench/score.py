"""`dpt bench score`: judge pictures that lie there once more, by another detector, without drawing any."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from dpt.cli.bench.judges import identity_of, open_beside, panel_for
from dpt.cli.bench.record import all_requests, claim, pictures_of, read_record, suite_of
from dpt.cli.bench.run import MADE_OF
from dpt.errors import fail


@dataclass(frozen=True)
class ScoreOptions:
    """Judge what `dpt bench run` has drawn by another detector, or add scores to its lines; nothing is drawn.

    Stop and repeat at will. Lines go into OUT/METHOD.jsonl; `dpt bench report OUT` counts them.
    """

    folder: tyro.conf.Positional[Path]
    out: Path
    """Another folder: the lines of two detectors never share one."""
    detector: Annotated[str | None, tyro.conf.arg(metavar="oracle|none|FOLDER|HUB_ID")] = None
    """As for `dpt bench run`; without it the verdicts stay as they are and only --clip and --itm are added."""
    colours: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """A CLIP that names the colour of each box, where the suite asks for colours and the detector tells none."""
    clip: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """A CLIP that scores each picture against its prompt."""
    itm: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A checkpoint whose adapter scores each picture against its prompt; no test of pictures that were corrected or
    chosen by such a score."""
    suite: Annotated[str | None, tyro.conf.arg(metavar="NAME=FILE")] = None
    """Where the suite's file is now, if it has been moved."""
    methods: tuple[str, ...] = ()
    """Default: all that were drawn."""


def score(options: ScoreOptions) -> None:
    if not (options.detector or options.clip or options.itm):
        fail("say --detector to judge again, --clip or --itm to add scores, or several of them")
    if options.colours and not options.detector:
        fail("--colours reads the boxes of a --detector, and none is given")
    if options.out.resolve() == options.folder.resolve():
        fail(f"{options.out} holds what was drawn and its lines; choose another --out")
    from tqdm import tqdm

    from dpt.evaluation.bench import results as rows
    from dpt.evaluation.bench import run as bench
    from dpt.evaluation.bench.judging import JudgeImages, Rescore
    from dpt.records import to_plain

    record = read_record(options.folder)
    suite = suite_of(record, options.suite)
    asked = all_requests(record, suite)
    pictures = pictures_of(options.folder, record)
    look: JudgeImages
    looking = {key: to_plain(options)[key] for key in ("detector", "colours", "clip", "itm")}
    beside = open_beside(suite, options.clip, options.itm, str(record["asked"]["pretrained_model_name_or_path"]))
    if options.detector:
        panel = panel_for(suite, options.detector, options.colours, beside)
    for name in chosen(options, record):
        known = record["methods"][name]
        if options.detector:
            made_of = {key: known[key] for key in MADE_OF if key in known}
            look, identity = panel, {**identity_of(suite, panel), **made_of}
        else:
            lines = {row.key: row for row in rows.read_results(options.folder / f"{name}.jsonl")}
            look, identity = Rescore(lines, beside), {**known, **beside.identities}
        # Relative, so that the two folders can be moved together.
        where = os.path.relpath(pictures, options.out)
        claim(options.out, {**record["asked"], **looking}, name, identity, pictures=where)
        with tqdm(total=len(asked), desc=name, unit="picture") as bar:
            bench.run_benchmark(name, asked, bench.StoredImages(pictures / name), look, options.out, bar.update)


def chosen(options: ScoreOptions, record: Mapping[str, Any]) -> list[str]:
    for name in options.methods:
        if name not in record["methods"]:
            fail(f"there is no method {name!r} in {options.folder}; there are {', '.join(record['methods'])}")
    return list(options.methods or record["methods"])
