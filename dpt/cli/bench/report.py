"""`dpt bench report`: the rates of each method, paired differences, and images side by side on one page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dpt.cli.bench.common import (
    JUDGE_KEYS,
    check_one_judge,
    check_same_options,
    image_folder,
    read_record,
    recorded_name,
    selected_methods,
    write_errors,
)
from dpt.cli.common.console import warn
from dpt.embedded import EMBEDDED_CLIP, clip_location
from dpt.errors import fail
from dpt.evaluation.bench.results import LIBRARIES_KEY, OPTIONS_KEY
from dpt.intervals import Estimate
from dpt.methods.base import BASE
from dpt.records import from_plain
from dpt.untrusted import parse_json, read_text

if TYPE_CHECKING:
    from dpt.evaluation.bench.columns import MethodResults
    from dpt.evaluation.bench.page import ReportData
    from dpt.evaluation.bench.tables import Result
    from dpt.evaluation.bench.verdicts import SecondJudgement
    from dpt.evaluation.fidelity import Fidelity


PER_CATEGORY = 3
"""Prompts of each category on the contact sheet."""

COLUMNS = 8
"""Approximate number of columns of the contact sheet."""

MOST_MEGABYTES = 1000

MANIFEST = "manifest.json"

ONE_TABLE = "one-table.md"


@dataclass(frozen=True)
class ReportOptions:
    """Report the rates, paired differences and images of a benchmark.

    Writes results.json, table.md, one-table.md, summary.jsonl, sheet.png, report.html and manifest.json.
    """

    folder: tyro.conf.Positional[Path]
    """The output folder of `dpt bench run`, or of `dpt bench score`."""
    methods: tuple[str, ...] = ()
    """The methods to report. Default: all in FOLDER."""
    baseline: str = BASE
    """The method that the others are compared with."""
    also: tuple[str, ...] = ()
    """Further methods to compare with, for instance a control."""
    seeds: tuple[str, ...] = ()
    """NAME=METHOD,METHOD: add a row for the mean over trainings of one method with several seeds."""
    kept: Path | None = None
    """The folder of an earlier report on the same prompts and options: its methods are added to the tables, from its
    summary.jsonl. A method that is in both is taken from FOLDER."""
    second: Path | None = None
    """The folder of `dpt bench score FOLDER --detector NAME`: tables of its rates and paired differences are added,
    and how far the two judges agree."""
    out: Path | None = None
    """Where the files go; default: the folder itself."""
    reference: Annotated[str | None, tyro.conf.arg(metavar="scenes|FOLDER")] = None
    """Also report the Fréchet distance of each method's images to these, rendered scenes or a folder of images."""
    encoder: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID|timm:NAME")] = None
    """The CLIP, SigLIP, DINOv2, DINOv3 or timm model whose image features give the distance, and the diversity: the
    mean distance between two images of a prompt. Default with --reference: the pocket's CLIP."""
    budget_mb: float = 8.0
    """Largest size of the images in report.html together, in megabytes."""


def report(options: ReportOptions) -> None:
    from dpt.evaluation.bench import tables
    from dpt.evaluation.bench.columns import PLOT, read_costs
    from dpt.evaluation.bench.page import ReportData

    if not (isfinite(options.budget_mb) and 0 < options.budget_mb <= MOST_MEGABYTES):
        fail(f"--budget_mb must be above 0 and at most {MOST_MEGABYTES}, not {options.budget_mb:g}")
    options = replace(
        options,
        baseline=recorded_name(options.baseline),
        also=tuple(map(recorded_name, options.also)),
        seeds=tuple(map(recorded_name, options.seeds)),
    )
    record = read_record(options.folder)
    names = selected_methods(options.methods, record, options.folder)
    for key in ("methods", LIBRARIES_KEY):
        record[key] = {name: value for name, value in record.get(key, {}).items() if name in names}
    check_one_judge(record["methods"], options.folder, ("model", *JUDGE_KEYS))
    methods = {name: read_method(options.folder / f"{name}.jsonl") for name in record["methods"]}
    earlier = open_earlier(options.kept, record, methods)
    all_methods = {**earlier.methods, **methods}
    over_seeds = pool_seeds(options.seeds, all_methods)
    all_methods |= over_seeds
    for flag, name in (("baseline", options.baseline), *(("also", name) for name in options.also)):
        if name not in all_methods:
            known = ", ".join(all_methods)
            fail(f"there is no method {name!r} for --{flag} among those of {options.folder} to report: {known}")
    costs = read_costs(image_folder(options.folder, record), methods)
    results = [*earlier.results, *tables.compute_results(methods, str(record[OPTIONS_KEY]["suite"]), costs)]
    pooled = tables.compute_results(over_seeds) if over_seeds else []
    results += [replace(result, readable=None) for result in pooled]
    differences = [
        tables.paired_difference(all_methods[name], all_methods[reference])
        for name, reference in pairs_to_compare(all_methods, (options.baseline, *options.also))
    ]
    fidelity = earlier.with_distances(measure_fidelity(options, record, methods))
    second = judge_again(options, record, methods)
    text = tables.tables(results, differences)
    if second:
        text += f"\n\n{second.table}"
    if fidelity:
        text += f"\n\n{fidelity.table}"
    again = {result.method: result for result in second.results} if second else {}
    in_one = tables.one_table(results, again, fidelity)
    if in_one:
        text += f"\n\nAll in one table:\n\n{in_one}"
    record = {
        **record,
        "methods": {**earlier.identities, **record["methods"]},
        LIBRARIES_KEY: {**earlier.libraries, **record[LIBRARIES_KEY]},
    }
    data = ReportData(record, options.baseline, results, differences, methods, fidelity, earlier.methods)
    out = write(options, text, data, second, in_one)
    print(text)
    print(f"\npage:   {out / 'report.html'}\nsheet:  {out / 'sheet.png'}\ntables: {out / 'table.md'}")
    if (out / PLOT).exists():
        print(f"plot:   {out / PLOT}")


def pool_seeds(texts: Sequence[str], methods: Mapping[str, MethodResults]) -> dict[str, MethodResults]:
    from dpt.evaluation.bench.tables import mean_over_seeds

    pooled = {}
    for text in texts:
        name, _, rest = text.partition("=")
        parts = rest.split(",")
        if unknown := [part for part in parts if part not in methods]:
            fail(f"--seeds {text}: there is no method {unknown[0]!r}; there are {', '.join(methods)}")
        if name in methods or len(parts) < 2:
            fail(f"--seeds {text}: use NAME=METHOD,METHOD with a new name and at least two methods")
        pooled[name] = mean_over_seeds(name, [methods[part] for part in parts])
    return pooled


def pairs_to_compare(methods: Iterable[str], references: Sequence[str]) -> list[tuple[str, str]]:
    """Each method with each reference, every pair once."""
    names = list(methods)
    earlier = {reference: references[: number + 1] for number, reference in enumerate(references)}
    return [(name, reference) for reference in references for name in names if name not in earlier[reference]]


def read_method(file: Path) -> MethodResults:
    from dpt.evaluation.bench.columns import MethodResults

    if not file.exists():
        fail(f"{file.stem} has no results in {file.parent} yet: finish the run, or pass the others as --methods")
    repair = "`dpt bench run` with the same options repairs the file"
    return MethodResults.read(file, lambda n: warn(f"{file} has {n} duplicate lines, which are counted once: {repair}"))


def measure_fidelity(
    options: ReportOptions, record: Mapping[str, Any], methods: Mapping[str, MethodResults]
) -> Fidelity | None:
    if options.reference is None and options.encoder is None:
        return None
    from dpt.evaluation.fidelity import fidelity
    from dpt.score.clip import open_encoder

    # Sets are truncated to the smallest: the first image of every prompt comes before the second of any.
    orders = {name: results.index.argsort(kind="stable").tolist() for name, results in methods.items()}
    keys = {name: [results.key(line) for line in orders[name]] for name, results in methods.items()}
    files = {
        name: [picture_file(options.folder, record, name, *key) for key in of_method]
        for name, of_method in keys.items()
    }
    prompts = {name: [prompt for prompt, _ in of_method] for name, of_method in keys.items()}
    if options.reference is None and not any(len(set(names)) < len(names) for names in prompts.values()):
        warn("--encoder alone measures diversity, which needs two images of a prompt")
        return None
    return fidelity(files, options.reference, open_encoder(clip_location(options.encoder or EMBEDDED_CLIP)), prompts)


def picture_file(folder: Path, record: Mapping[str, Any], method: str, prompt_id: str, index: int) -> Path:
    from dpt.evaluation.suites.base import image_file
    from dpt.evaluation.suites.registry import layout_of

    layout = layout_of(record[OPTIONS_KEY]["suite"])
    return image_folder(folder, record) / method / image_file(layout, prompt_id, index)


def judge_again(
    options: ReportOptions, record: Mapping[str, Any], methods: Mapping[str, MethodResults]
) -> SecondJudgement | None:
    """The verdicts of --second on the images of this benchmark."""
    if options.second is None:
        return None
    from dpt.evaluation.bench.verdicts import second_judgement

    second = read_record(options.second)
    check_same_options(record[OPTIONS_KEY], second[OPTIONS_KEY], f"the benchmark in {options.second}")
    check_one_judge(second["methods"], options.second, ("model", *JUDGE_KEYS))
    names = [name for name in methods if name in second["methods"]]
    if not names:
        fail(f"{options.second} has no method of {options.folder}: --second has no effect")
    for name in names:
        first, again = (
            {key: value for key, value in of["methods"][name].items() if key not in JUDGE_KEYS}
            for of in (record, second)
        )
        if first != again:
            fail(f"the images of {name} in {options.folder} and {options.second} differ and cannot share a table")
    detectors = [of["methods"][names[0]].get("detector") for of in (record, second)]
    if detectors[0] == detectors[1]:
        fail(f"{options.second} was judged by the same detector, {detectors[0]}: pass the folder of another judge")
    references = [name for name in (options.baseline, *options.also) if name in names]
    pairs = pairs_to_compare(names, references)
    again_results = {name: read_method(options.second / f"{name}.jsonl") for name in names}
    return second_judgement(methods, again_results, str(detectors[1]), pairs)


def write(
    options: ReportOptions, text: str, data: ReportData, second: SecondJudgement | None = None, in_one: str = ""
) -> Path:
    from dpt.evaluation.bench.columns import PLOT, plot
    from dpt.evaluation.bench.gallery import Album
    from dpt.evaluation.bench.page import page
    from dpt.evaluation.bench.verdicts import summary
    from dpt.evaluation.suites.registry import layout_of

    out, record = options.out or options.folder, data.record
    layout = layout_of(record[OPTIONS_KEY]["suite"])
    html = page(data, Album(image_folder(options.folder, record), layout, int(options.budget_mb * 1e6)))
    own, over_seeds = (
        [asdict(result) for result in data.results if (result.method in record["methods"]) == is_method]
        for is_method in (True, False)
    )
    numbers: dict[str, Any] = {
        "results": own,
        **({"over_seeds": over_seeds} if over_seeds else {}),
        "differences": [asdict(difference) for difference in data.differences],
    }
    if data.fidelity:
        numbers["fidelity"] = asdict(data.fidelity)
    if second:
        numbers["second"] = asdict(second)
    manifest_content = manifest(options, data)
    picture = sheet(options.folder, record, data.methods)
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)
        (out / "results.json").write_text(json.dumps({**record, **numbers}, indent=1) + "\n")
        (out / "table.md").write_text(f"{text}\n")
        (out / ONE_TABLE).write_text(f"{in_one}\n")
        with (out / "summary.jsonl").open("w") as lines:
            lines.writelines(list(summary({**data.kept, **data.methods})))
        picture.save(out / "sheet.png", optimize=True)
        (out / PLOT).unlink(missing_ok=True)
        if data.results[0].rates:
            plot(data.results, out / PLOT)
        (out / "report.html").write_text(html, encoding="utf-8")
        # Written last: a report with a manifest is complete.
        (out / MANIFEST).write_text(json.dumps(manifest_content, indent=1) + "\n")
    return out


def manifest(options: ReportOptions, data: ReportData) -> dict[str, Any]:
    """Hashes of the suite and of the results files, and library versions."""
    from dpt.cli.common.console import versions
    from dpt.files import sha256

    record = data.record
    hashes = {identity.get("suite_hash") for identity in record["methods"].values()} - {None}
    return {
        "suite": str(record[OPTIONS_KEY]["suite"]).partition("=")[0],
        "suite_hash": hashes.pop() if len(hashes) == 1 else None,
        "versions": versions(),
        "lines": {
            **earlier_hashes(options.kept, data.kept),
            **{f"{name}.jsonl": sha256(options.folder / f"{name}.jsonl") for name in data.methods},
        },
    }


def earlier_hashes(kept: Path | None, methods: Iterable[str]) -> dict[str, str]:
    """Hashes of the results files of an earlier report, if it is complete."""
    if kept is None or not (kept / MANIFEST).exists():
        return {}
    try:
        lines = parse_json(read_text(kept / MANIFEST))["lines"]
        return {f"{name}.jsonl": str(lines[f"{name}.jsonl"]) for name in methods}
    except (OSError, ValueError, KeyError, TypeError):
        fail(f"{kept / MANIFEST} is not the manifest of a report")


def sheet(folder: Path, record: Mapping[str, Any], methods: Mapping[str, MethodResults]) -> Any:
    """A contact sheet: the first prompts of each category, with the images of all methods side by side."""
    from dpt.evaluation.bench.results import open_image
    from dpt.evaluation.contact_sheet import contact_sheet

    first = next(iter(methods.values()))
    verdicts = {True: "right", False: "wrong", None: "not judged"}
    pictures, captions = [], []
    for category in range(len(first.categories)):
        lines = ((first.category == category) & (first.index == first.index.min())).nonzero()[0][:PER_CATEGORY]
        for key in (first.key(int(line)) for line in lines):
            for name, results in methods.items():
                if (line := results.line_of.get(key)) is not None:
                    result = results.result(line)
                    pictures.append(open_image(picture_file(folder, record, name, *key)))
                    captions.append(f"{name}, {verdicts[result.passed]}: {result.prompt}")
    return contact_sheet(pictures, captions, columns=len(methods) * max(1, COLUMNS // len(methods)))


@dataclass(frozen=True)
class EarlierReport:
    """The methods of --kept; empty without it."""

    identities: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Result] = ()
    methods: Mapping[str, MethodResults] = field(default_factory=dict)
    fidelity: Mapping[str, Any] | None = None
    libraries: Mapping[str, Any] = field(default_factory=dict)

    def with_distances(self, fidelity: Fidelity | None) -> Fidelity | None:
        """Add the distances of the earlier methods, if reference and encoder are the same."""
        earlier = self.fidelity
        if fidelity is None or earlier is None:
            return fidelity
        measured = ("distances", "floor", "diversity")
        settings = {key: value for key, value in asdict(fidelity).items() if key not in measured}
        if any(earlier.get(key) != value for key, value in settings.items()):
            return fidelity
        distances = {name: earlier["distances"][name] for name in self.methods if name in earlier["distances"]}
        spread = {
            name: from_plain(Estimate, value, "the earlier report")
            for name, value in earlier.get("diversity", {}).items()
            if name in self.methods
        }
        return replace(
            fidelity,
            distances={**distances, **fidelity.distances},
            diversity={**spread, **fidelity.diversity},
        )


def open_earlier(folder: Path | None, record: Mapping[str, Any], methods: Mapping[str, MethodResults]) -> EarlierReport:
    """Open an earlier report with those of its methods that are not in this benchmark."""
    if folder is None:
        return EarlierReport()
    from dpt.evaluation.bench.verdicts import read_summary

    saved = read_summary(folder)
    check_same_options(record[OPTIONS_KEY], saved.record[OPTIONS_KEY], f"the report in {folder}")
    identities = {name: identity for name, identity in saved.record["methods"].items() if name not in methods}
    if not identities:
        fail(f"all methods of the report in {folder} are in this benchmark too: --kept has no effect")
    check_one_judge({**identities, **record["methods"]}, folder)
    like = max(methods.values(), key=len)
    kept = {name: saved.method_results(name, like) for name in identities}
    for name, results in kept.items():
        saved.check(name, results)
    return EarlierReport(
        identities,
        [result for result in saved.results if result.method in identities],
        kept,
        saved.fidelity,
        {name: drawn_by for name, drawn_by in saved.record.get(LIBRARIES_KEY, {}).items() if name in identities},
    )
