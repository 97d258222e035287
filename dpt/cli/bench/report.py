"""`dpt bench report`: count the results of a benchmark, compare methods in pairs, show them on one page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dpt.cli.bench.record import check_one_judge, check_same_settings, pictures_of, read_record
from dpt.cli.bench.run import BASE
from dpt.embedded import EMBEDDED_CLIP, clip_location
from dpt.errors import fail
from dpt.untrusted import parse_json

if TYPE_CHECKING:
    from dpt.evaluation.bench.page.page import Counted
    from dpt.evaluation.bench.results import ImageResult
    from dpt.evaluation.bench.tables import Result
    from dpt.evaluation.fidelity import Fidelity


SHOWN = 3

ACROSS = 8
"""Pictures side by side, as far as methods allow."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ReportOptions:
    """Count what `dpt bench run` or `score` has written: rates, paired differences, pictures of the same noise.

    Writes results.json, table.md, summary.jsonl, sheet.png, report.html and manifest.json.
    """

    folder: tyro.conf.Positional[Path]
    baseline: str = BASE
    """The method that the others are compared with."""
    also: tuple[str, ...] = ()
    """Further methods to be compared with, for instance a control."""
    kept: Path | None = None
    """The folder of an earlier report on the same pictures asked for: its methods stand in the tables too, counted from
    its summary.jsonl. One that is in both is taken from FOLDER."""
    out: Path | None = None
    """Where the files go; default: the folder itself."""
    reference: Annotated[str | None, tyro.conf.arg(metavar="scenes|FOLDER")] = None
    """Pictures to compare those of each method with, as sets: rendered scenes, or a folder of pictures."""
    encoder: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED_CLIP
    """The CLIP whose image features --reference compares."""
    budget_mb: float = 8.0
    """Most megabytes of pictures in report.html."""


def report(options: ReportOptions) -> None:
    from dpt.evaluation.bench import results as rows
    from dpt.evaluation.bench import tables as counting
    from dpt.evaluation.bench.page.page import Counted

    if not options.budget_mb > 0:
        fail(f"--budget_mb must be above 0, not {options.budget_mb:g}")
    if options.reference is None and options.encoder != EMBEDDED_CLIP:
        fail("--encoder is what --reference is compared by, and none is given")
    record = read_record(options.folder)
    check_one_judge(record["methods"], options.folder)
    drawn = {name: rows.read_results(options.folder / f"{name}.jsonl") for name in record["methods"]}
    earlier = open_earlier(options.kept, record, drawn)
    found = {**earlier.lines, **drawn}
    for name in (options.baseline, *options.also):
        if name not in found:
            fail(f"there is no method {name!r} in {options.folder}; there are {', '.join(found)}")
    results = [*earlier.results, *counting.results(drawn, str(record["asked"]["suite"]))]
    apart = [
        counting.difference(found[name], found[other])
        for other in (options.baseline, *options.also)
        for name in found
        if name not in (options.baseline, other)
    ]
    fidelity = earlier.beside(fidelity_of(options, record, drawn))
    tables = counting.tables(results, apart)
    if fidelity:
        tables += f"\n\n{fidelity.table}"
    record = {**record, "methods": {**earlier.made_of, **record["methods"]}}
    write(options, tables, Counted(record, options.baseline, results, apart, drawn, fidelity, earlier.lines))
    print(tables)


def fidelity_of(
    options: ReportOptions, record: Mapping[str, Any], found: Mapping[str, Sequence[ImageResult]]
) -> Fidelity | None:
    if options.reference is None:
        return None
    from dpt.evaluation.fidelity import fidelity
    from dpt.score.clip import Clip

    files = {name: [file_of(options.folder, record, name, row) for row in own] for name, own in found.items()}
    return fidelity(files, options.reference, Clip.open(clip_location(options.encoder)))


def file_of(folder: Path, record: Mapping[str, Any], method: str, row: ImageResult) -> Path:
    from dpt.evaluation.suites.base import image_file
    from dpt.evaluation.suites.registry import layout_of

    layout = layout_of(record["asked"]["suite"])
    return pictures_of(folder, record) / method / image_file(layout, row.prompt_id, row.index)


def write(options: ReportOptions, tables: str, counted: Counted) -> None:
    from dpt.evaluation.bench.page.gallery import Album
    from dpt.evaluation.bench.page.page import page
    from dpt.evaluation.bench.summary import summary
    from dpt.evaluation.suites.registry import layout_of

    out, record = options.out or options.folder, counted.record
    album = Album(
        pictures_of(options.folder, record), layout_of(record["asked"]["suite"]), int(options.budget_mb * 1e6)
    )
    html = page(counted, album)
    numbers: dict[str, Any] = {
        "results": [asdict(one) for one in counted.results],
        "differences": [asdict(one) for one in counted.differences],
    }
    if counted.fidelity:
        numbers["fidelity"] = asdict(counted.fidelity)
    made_of = manifest(options, counted)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)
        (out / "results.json").write_text(json.dumps({**record, **numbers}, indent=1) + "\n")
        (out / "table.md").write_text(f"{tables}\n")
        (out / "summary.jsonl").write_text("".join(summary({**counted.kept, **counted.rows})))
        sheet(options.folder, record, counted.rows).save(out / "sheet.png", optimize=True)
        (out / "report.html").write_text(html, encoding="utf-8")
        # Last, so that a report with a manifest is a whole one.
        (out / MANIFEST).write_text(json.dumps(made_of, indent=1) + "\n")
    except OSError as error:
        fail(f"cannot write into {out}: {error.strerror or error}")


def manifest(options: ReportOptions, counted: Counted) -> dict[str, Any]:
    """What the numbers were counted from, and by which versions of what."""
    from dpt.cli.common.console import versions
    from dpt.files import sha256

    record = counted.record
    hashes = {identity.get("suite_hash") for identity in record["methods"].values()} - {None}
    return {
        "suite": str(record["asked"]["suite"]).partition("=")[0],
        "suite_hash": hashes.pop() if len(hashes) == 1 else None,
        "versions": versions(),
        "lines": {
            **known_lines(options.kept, counted.kept),
            **{f"{name}.jsonl": sha256(options.folder / f"{name}.jsonl") for name in counted.rows},
        },
    }


def known_lines(kept: Path | None, methods: Iterable[str]) -> dict[str, str]:
    """The hashes of lines that an earlier report was counted from, if it was a whole one."""
    if kept is None or not (kept / MANIFEST).exists():
        return {}
    try:
        lines = parse_json((kept / MANIFEST).read_text())["lines"]
        return {f"{name}.jsonl": str(lines[f"{name}.jsonl"]) for name in methods}
    except (OSError, ValueError, KeyError, TypeError):
        fail(f"{kept / MANIFEST} is not the manifest of a report")


def sheet(folder: Path, record: Mapping[str, Any], found: Mapping[str, Sequence[ImageResult]]) -> Any:
    """The first prompts of each category, none chosen; of each the pictures of all methods side by side."""
    from dpt.evaluation.bench.requests import open_image
    from dpt.evaluation.contact_sheet import contact_sheet

    first: dict[str, list[ImageResult]] = {}
    for row in next(iter(found.values())):
        of_category = first.setdefault(row.category, [])
        if row.index == 0 and len(of_category) < SHOWN:
            of_category.append(row)
    said = {True: "right", False: "wrong", None: "not judged"}
    by_key = {name: {row.key: row for row in own} for name, own in found.items()}
    pictures, captions = [], []
    for wanted in (row.key for rows in first.values() for row in rows):
        for name, own in by_key.items():
            if (drawn := own.get(wanted)) is not None:
                pictures.append(open_image(file_of(folder, record, name, drawn)))
                captions.append(f"{name}, {said[drawn.passed]}: {drawn.prompt}")
    return contact_sheet(pictures, captions, columns=len(found) * max(1, ACROSS // len(found)))


@dataclass(frozen=True)
class EarlierReport:
    """What there is of them: nothing, where no report was kept."""

    made_of: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Result] = ()
    lines: Mapping[str, Sequence[ImageResult]] = field(default_factory=dict)
    fidelity: Mapping[str, Any] | None = None

    def beside(self, own: Fidelity | None) -> Fidelity | None:
        """With the distances of the earlier sets, if they were measured by the same encoder to the same pictures."""
        from dataclasses import asdict, replace

        known = self.fidelity
        if own is None or known is None:
            return own
        if any(known.get(key) != value for key, value in asdict(own).items() if key not in ("distances", "floor")):
            return own
        distances = {name: known["distances"][name] for name in self.lines if name in known["distances"]}
        return replace(own, distances={**distances, **own.distances})


def open_earlier(
    folder: Path | None, record: Mapping[str, Any], drawn: Mapping[str, Sequence[ImageResult]]
) -> EarlierReport:
    """All of its methods but those that were drawn here."""
    if folder is None:
        return EarlierReport()
    from dpt.evaluation.bench.summary import read_summary

    kept = read_summary(folder)
    check_same_settings(record["asked"], kept.record["asked"], f"what {folder} counts")
    made_of = {name: one for name, one in kept.record["methods"].items() if name not in drawn}
    if not made_of:
        fail(f"all methods that {folder} counts are here too: --kept would do nothing")
    check_one_judge({**made_of, **record["methods"]}, folder)
    like = next(iter(drawn.values()))
    lines = {name: kept.rows(name, like) for name in made_of}
    for name, own in lines.items():
        kept.check(name, own)
    return EarlierReport(made_of, [one for one in kept.results if one.method in made_of], lines, kept.fidelity)
