"""`dpt sld measure` and `dpt sld bench`: corrections and edits counted, with their cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from dpt.cli.common.console import plain_warnings
from dpt.cli.sld.options import Rows, SLDModelOptions, examples, read_rows
from dpt.errors import UserError, fail
from dpt.files import atomic_file
from dpt.methods.base import BASE, DiffusionConfig, GenerationConfig
from dpt.methods.sld.settings import EngineSettings, LoopSettings
from dpt.untrusted import parse_json

if TYPE_CHECKING:
    from dpt.detect.base import Image
    from dpt.evaluation.bench.run import ImageJudge, ImageRequest
    from dpt.methods.sld.method import SLDMethod


SUFFIX = "-sld"


@dataclass(frozen=True)
class RepairOptions:
    """How the images are corrected."""

    detector: str = "oracle"
    """The detector of the loop: oracle, noisy-oracle (drops, splits and shifts boxes), owlv2, or any other. Verdicts
    before and after are the benchmark's own detector's."""
    masks: str | None = None
    readings: int | None = None
    """Readings of an image on which the detector votes; default: 1 with the oracle, 5 otherwise."""
    max_rounds: int = LoopSettings.max_rounds
    policy: Literal["route", "edit", "redraw"] = "route"
    """route: edit single faults, sample images with several missing objects again; edit, redraw: always that."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class SLDMeasureOptions:
    """Correct the images of `dpt bench run`, judge them before and after, and count the calls of the network.

    Writes OUT/METHOD-sld.jsonl, a line per image with its rounds, OUT/METHOD-sld/ with the images, summary.jsonl,
    table.md, and strips.png with an example of each edit. Interrupt and repeat at will: the same command resumes.
    """

    folder: tyro.conf.Positional[Path]
    """The output folder of `dpt bench run`."""
    out: Path
    method: str = BASE
    """The method whose images are corrected, as in `dpt bench run`: base, or NAME=PATH."""
    per_prompt: int | None = None
    """Images per prompt; default: all of the benchmark."""
    num: int | None = None
    """Images in all, taken in turn from the categories; default: all."""
    candidates: Path | None = None
    """Output folder of `dpt bench run METHOD` with several images per prompt: the table then has the best of n at as
    many calls, chosen by the benchmark's detector."""
    correction: RepairOptions = field(default_factory=RepairOptions)


def measure(options: SLDMeasureOptions) -> None:
    from tqdm import tqdm

    from dpt.cli.bench.common import (
        image_folder,
        judge_identity,
        method_lock,
        open_judge,
        read_record,
        recorded_requests,
        recorded_suite,
    )
    from dpt.cli.sld.options import page
    from dpt.evaluation.bench.results import OPTIONS_KEY
    from dpt.evaluation.bench.run import NO_EXTRA_SCORES
    from dpt.records import claim_record

    record = read_record(options.folder)
    suite = recorded_suite(record)
    recorded = record[OPTIONS_KEY]
    judge = open_judge(suite, recorded["detector"], recorded["colours"], NO_EXTRA_SCORES)
    if judge.detector is None:
        fail(f"the images of {options.folder} are not judged: measure those of a suite that is")
    config = _method(options, recorded)
    if config.name not in record["methods"]:
        fail(f"there is no method {config.name!r} in {options.folder}; there are {', '.join(record['methods'])}")
    per_prompt = recorded["per_prompt"] if options.per_prompt is None else options.per_prompt
    requests = [r for r in recorded_requests(record, suite) if r.index < per_prompt]
    requests = in_turn(requests)[: options.num]
    name = f"{config.name}{SUFFIX}"
    rows_file = options.out / f"{name}.jsonl"
    with method_lock(options.out, name):
        method = _open(config, options.correction, _generation(recorded))
        _check_same(record["methods"][config.name], method.base.identity, config.name, options.folder)
        identity = {**method.identity, **judge_identity(suite, judge)}
        refusal = f"{options.out} holds other results of {name}: choose another --out"
        plain = parse_json(json.dumps(identity, default=str))
        claim_record(
            options.out / f"{name}.json", plain, lambda changed: f"{refusal} ({', '.join(changed)} differ)", False
        )
        rows = read_rows(rows_file, "prompt_id", "index")
        with atomic_file(rows_file) as work:  # without a last line that a kill cut off
            work.write_text("".join(f"{json.dumps(row)}\n" for row in rows.values()), encoding="utf-8")
        images = image_folder(options.folder, record) / config.name
        with rows_file.open("a", encoding="utf-8") as stream, plain_warnings():
            for request in tqdm(requests, desc=name, unit="image"):
                if request.key not in rows:
                    row = correct_one(method, judge, request, images, options.out / name)
                    rows[request.key] = row
                    stream.write(json.dumps(row) + "\n")
                    stream.flush()
        own = [rows[request.key] for request in requests]
        write_strips(method, {request.key: request for request in requests}, own, images, options.out / "strips.png")
    text = page(own, calls_per_image(method), name, _candidates(options, config.name))
    for file, content in (("table.md", text), ("summary.jsonl", summary(own))):
        with atomic_file(options.out / file) as work:
            work.write_text(content, encoding="utf-8")
    print(text)


def in_turn(requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """First images first, and of every category one after the other, so that an interrupted run covers all."""
    numbers: dict[tuple[str, int], int] = {}
    order = []
    for request in requests:
        key = (request.prompt.category, request.index)
        numbers[key] = numbers.get(key, -1) + 1
        order.append((request.index, numbers[key]))
    return [request for _, request in sorted(zip(order, requests, strict=True), key=lambda each: each[0])]


def correct_one(
    method: SLDMethod, judge: ImageJudge, request: ImageRequest, images: Path, folder: Path
) -> dict[str, Any]:
    """Correct an image, save it, and return its line. An image that cannot be corrected stays as it is."""
    import numpy as np
    from PIL import Image as PILImage

    from dpt.backbone.rng import derived_seed
    from dpt.claims.parse import parse_prompt
    from dpt.evaluation.bench.results import open_image
    from dpt.evaluation.bench.run import save_image
    from dpt.methods.sld.record import as_record

    image: Image = np.asarray(open_image(images / request.file))
    corrector = method.corrector
    calls, start = corrector.calls, time.monotonic()
    seed = derived_seed(request.seed, request.index, "sld")
    try:
        result = corrector.correct(image, parse_prompt(request.prompt.text), seed)
        best, outcome = result.best.image, as_record(result)
    except UserError as error:
        best, outcome = image, {"status": "failed", "reason": str(error), "rounds": []}
    seconds = time.monotonic() - start
    save_image(PILImage.fromarray(best), request, folder)
    before, after = (bool(judge(method.base.settings.scheduler, [request], [each])[0].passed) for each in (image, best))
    return {
        "prompt_id": request.prompt.id,
        "index": request.index,
        "category": request.prompt.category,
        "prompt": request.prompt.text,
        "seed": seed,
        "before": before,
        "after": after,
        "calls": corrector.calls - calls,
        "seconds": round(seconds, 2),
        **outcome,
    }


def write_strips(
    method: SLDMethod, requests: Mapping[tuple[str, int], ImageRequest], rows: Rows, images: Path, file: Path
) -> None:
    """Correct the examples again, which gives the same rounds, and draw them one below the other."""
    import numpy as np
    from PIL import Image as PILImage

    from dpt.claims.parse import parse_prompt
    from dpt.evaluation.bench.results import open_image
    from dpt.evaluation.contact_sheet import stacked
    from dpt.methods.sld.record import strip

    shown: list[PILImage.Image] = []
    for row in examples(rows):
        request = requests[row["prompt_id"], row["index"]]
        image = np.asarray(open_image(images / request.file))
        result = method.corrector.correct(image, parse_prompt(row["prompt"]), row["seed"])
        shown.append(strip(result, row["prompt"]))
    if shown:
        with atomic_file(file) as work:
            stacked(shown).save(work, "png")


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """A short line per image."""
    keys = ("prompt_id", "index", "before", "after", "best_round", "calls")
    return "".join(json.dumps({key: row[key] for key in keys if key in row}) + "\n" for row in rows)


def calls_per_image(method: SLDMethod) -> int:
    """Batch rows that the network computes to sample one image of the method."""
    from dpt.sampling.draw import calls_per_picture

    rows = 1 if method.base.settings.guidance_scale == 1 else 2
    return rows * calls_per_picture(method.base.backbone, method.base.settings)


def _method(options: SLDMeasureOptions, recorded: Mapping[str, Any]) -> DiffusionConfig:
    from dpt.methods.registry import parse_methods

    (config,) = parse_methods([options.method], recorded["num_timesteps"], recorded["pretrained_model_name_or_path"])
    if not isinstance(config, DiffusionConfig):
        fail(f"--method {options.method}: SLD can only follow a method that samples images")
    return config


def _generation(recorded: Mapping[str, Any]) -> GenerationConfig:
    from dpt.sampling.options import SamplerConfig

    sampler = SamplerConfig(recorded["num_timesteps"], recorded["guidance_scale"], recorded["scheduler"])
    return GenerationConfig(recorded["pretrained_model_name_or_path"], sampler, recorded["mixed_precision"])


def _open(config: DiffusionConfig, correction: RepairOptions, generation: GenerationConfig) -> SLDMethod:
    from dpt.methods.sld.method import SLDConfig, default_masks

    return SLDConfig(
        f"{config.name}{SUFFIX}",
        config,
        correction.detector,
        correction.masks or default_masks(correction.detector),
        readings=correction.readings,
        loop=LoopSettings(correction.max_rounds, policy=correction.policy),
    ).open(generation)


def _check_same(known: Mapping[str, Any], own: Mapping[str, Any], name: str, folder: Path) -> None:
    """Raise if the images are of another model or LoRA than the one that would edit them."""
    for key in ("model", "lora"):
        if known.get(key) != own.get(key):
            fail(f"the images of {name} in {folder} are of another {key} than --method names")


def _candidates(options: SLDMeasureOptions, name: str) -> list[tuple[str, list[bool]]]:
    """Category and verdicts of all images of each prompt."""
    if options.candidates is None:
        return []
    verdicts: dict[str, tuple[str, list[bool]]] = {}
    for line in _lines(options.candidates / f"{name}.jsonl"):
        verdicts.setdefault(line["prompt_id"], (line["category"], []))[1].append(bool(line["passed"]))
    return list(verdicts.values())


def _lines(file: Path) -> Iterator[Mapping[str, Any]]:
    from dpt.evaluation.bench.results import read_lines

    if not file.exists():
        fail(f"--candidates has no results {file.name}: run dpt bench run with several images per prompt there")
    rows = sorted((line.fields for line in read_lines(file)), key=lambda fields: fields["index"])
    yield from rows


MAX_CASES = 10_000


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class EditBenchOptions:
    """Follow instructions on rendered scenes and count by the oracle how many images show what they should.

    Writes a line per case to OUT/edits.jsonl, and OUT/table.md; the same command resumes. Correction by prompts is
    measured by `dpt sld measure`.
    """

    num: int = 29
    """Instructions per kind of edit; with the seven kinds, the default is about 200."""
    out: Path = Path("outputs/sld-edits")
    max_rounds: int = 3
    model: SLDModelOptions = field(default_factory=SLDModelOptions)


def bench(options: EditBenchOptions) -> None:
    if not 1 <= options.num <= MAX_CASES:
        fail(f"--num must be from 1 to {MAX_CASES}, not {options.num}")
    from tqdm import tqdm

    from dpt.claims.layout import layout_of
    from dpt.evaluation.suites.pocket import KINDS, edit_cases
    from dpt.methods.sld.record import as_record

    loop = LoopSettings(options.max_rounds, policy="edit")
    corrector = options.model.open(EngineSettings(), loop, options.model.planner(options.out))
    file = options.out / "edits.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(file, "kind", "number")
    with atomic_file(file) as work:  # without a last line that a kill cut off
        work.write_text("".join(f"{json.dumps(row)}\n" for row in rows.values()), encoding="utf-8")
    cases = [case for kind in KINDS for case in edit_cases(kind, options.num, options.model.seed)]
    cases.sort(key=lambda case: case.number)  # an interrupted run has seen every kind
    for case in tqdm(cases, desc="edits", unit="image"):
        if (case.kind, case.number) in rows:
            continue
        before = corrector.calls
        result = corrector.follow(case.image, case.instruction, case.number)
        (detections,) = corrector.detector.detect([result.best.image])
        side = case.image.shape[0]
        row = {
            "kind": case.kind,
            "number": case.number,
            "instruction": case.instruction.text,
            "passed": case.passed(layout_of(detections, side, side)),
            "calls": corrector.calls - before,
            **{key: value for key, value in as_record(result).items() if key != "rounds"},
        }
        rows[case.kind, case.number] = row
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
    text = table(list(rows.values()))
    with atomic_file(options.out / "table.md") as work:
        work.write_text(text, encoding="utf-8")
    print(text)


def table(rows: list[dict[str, Any]]) -> str:
    """A line per kind of edit: how many were right, with the 95 % Wilson interval."""
    from dpt.intervals import Share

    lines = ["| kind | followed | of | % | calls of the network |", "|---|---|---|---|---|"]
    for kind in (*dict.fromkeys(row["kind"] for row in rows), "all"):
        own = [row for row in rows if kind in (row["kind"], "all")]
        right = sum(bool(row["passed"]) for row in own)
        calls = sum(row["calls"] for row in own) / len(own)
        lines.append(f"| {kind} | {right} | {len(own)} | {Share(right, len(own))} | {calls:.0f} |")
    return "\n".join(lines) + "\n"
