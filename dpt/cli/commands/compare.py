"""`dpt compare` and `dpt demo`: prompts with several methods from the same noise, as a sheet and as a web page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import tyro

from dpt.cli.bench.common import NO_DETECTOR, open_judge
from dpt.cli.common.console import new_run_folder, plain_warnings, warn_of_unknown_words
from dpt.detect.registry import ORACLE
from dpt.embedded import EMBEDDED, EMBEDDED_MODELS
from dpt.errors import UserError, fail
from dpt.methods.base import GenerationConfig, MethodConfig
from dpt.methods.registry import BASE, known_methods, parse_methods
from dpt.sampling.options import SamplerConfig
from dpt.untrusted import MOST_IMAGES

if TYPE_CHECKING:
    from PIL import Image

    from dpt.evaluation.bench.results import ImageResult
    from dpt.evaluation.bench.run import GeneratedImages, ImageJudge, ImageRequest
    from dpt.evaluation.suites.base import Suite
    from dpt.methods.base import DiffusionMethod, Method


SHEET, RESULTS = "sheet.png", "results.jsonl"

VERDICTS = {True: "right", False: "wrong", None: "not judged"}

MOST_SHOWN = 200
"""Images on the sheet."""

PREFERRED = ("dpt", "corrected")
"""The methods that are compared unless others are named."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class CompareOptions:
    """Sample a few prompts with several methods from the same noise, judge every image, and show them side by side.

    Without --prompt: the first prompts of each category of the pocket suite. Writes images, sheet.png (right images
    have a green frame, wrong ones a red one) and results.jsonl to a new folder.
    """

    methods: tyro.conf.Positional[tuple[str, ...]] = ()
    """As for `dpt bench run`. Default: base, then what the checkpoints of the embedded model offer, then SLD."""
    prompt: tuple[str, ...] = ()
    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    per_prompt: int = 1
    """Images per prompt."""
    prompts_per_category: int = 1
    """Of the pocket suite."""
    seed: int = 0
    """Another seed gives other noise, and other prompts of the pocket suite."""
    detector: Annotated[str | None, tyro.conf.arg(metavar="oracle|none|FOLDER|HUB_ID")] = None
    """The judge. Default: oracle for embedded models, which reads rendered scenes only; else none."""
    colours: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """A CLIP model that names the colour of each box, for detectors that do not read colours."""
    outdir: Path = Path("outputs/compare")
    sampler: SamplerConfig = field(default_factory=SamplerConfig)


def compare(options: CompareOptions) -> None:
    embedded = options.pretrained_model_name_or_path in EMBEDDED_MODELS
    detector = options.detector or (ORACLE if embedded else NO_DETECTOR)
    methods = methods_of(options)
    warn_of_unknown_words(options.pretrained_model_name_or_path, options.prompt)
    suite = suite_of(options, judged=detector != NO_DETECTOR)
    total = len(suite.prompts) * options.per_prompt * len(methods)
    if not 1 <= total <= MOST_SHOWN:
        fail(f"{total} images do not fit on a sheet, which holds 1 to {MOST_SHOWN}: use `dpt bench run`")
    from dpt.evaluation.bench.results import append_results
    from dpt.evaluation.bench.run import NO_EXTRA_SCORES, GeneratedImages, all_requests

    judge = open_judge(suite, detector, options.colours, NO_EXTRA_SCORES)
    requests = sorted(all_requests(suite, options.per_prompt), key=lambda request: suite.prompts.index(request.prompt))
    generation = GenerationConfig(options.pretrained_model_name_or_path, options.sampler).with_defaults()
    results: dict[str, list[ImageResult]] = {}
    name = options.prompt[0] if options.prompt else suite.name
    with new_run_folder(options.outdir, name) as folder, plain_warnings():
        images: dict[str, list[Image.Image]] = {}
        opened: dict[MethodConfig, Method] = {}
        for method in methods:
            opened[method] = open_method(method, generation, requests, opened, images)
            source = GeneratedImages(opened[method], folder.work / method.name)
            images[method.name], results[method.name] = sample(method.name, source, requests, judge)
            append_results(folder.work / RESULTS, results[method.name])
        sheet_of(requests, images, results).save(folder.work / SHEET, optimize=True)
    for line in (*table(requests, results), *closing(results)):
        print(line)
    print(f"see {SHEET} in {folder.final}")


def methods_of(options: CompareOptions) -> list[MethodConfig]:
    model, steps = options.pretrained_model_name_or_path, options.sampler.num_timesteps
    if options.methods:
        return parse_methods(options.methods, steps, model)
    known = known_methods(steps, model)
    names = [name for name in PREFERRED if name in known]
    repaired = f"{names[-1]}+sld" if names else "sld"
    return parse_methods([BASE, *names, repaired], steps, model)


def suite_of(options: CompareOptions, judged: bool) -> Suite:
    """The prompts with the claims that the rules read from them, or the first ones of the pocket suite."""
    from dpt.evaluation.suites import pocket
    from dpt.evaluation.suites.registry import texts_suite

    limited = {
        "per_prompt": options.per_prompt,
        "prompts_per_category": options.prompts_per_category,
        "num_timesteps": options.sampler.num_timesteps,
    }
    for name, value in limited.items():
        if not 1 <= value <= MOST_IMAGES:
            fail(f"--{name} must be from 1 to {MOST_IMAGES:,}, not {value}")
    if options.prompt:
        return texts_suite(options.prompt, judged, options.seed)
    return pocket.suite(per_category=options.prompts_per_category, seed=options.seed)


def open_method(
    config: MethodConfig,
    generation: GenerationConfig,
    requests: Sequence[ImageRequest],
    opened: Mapping[MethodConfig, Method],
    images: Mapping[str, Sequence[Image.Image]],
) -> Method:
    """SLD repairs the images that its base method has drawn, if that is one of the methods."""
    from dpt.evaluation.bench.run import drawing
    from dpt.methods.sld.method import RepairOfDrawn, SLDConfig

    if not isinstance(config, SLDConfig) or config.base not in opened:
        return config.open(generation)
    base = cast("DiffusionMethod", opened[config.base])
    drawn = dict(zip(map(drawing, requests), images[config.base.name], strict=True))
    return RepairOfDrawn(config.after(base, generation), drawn.__getitem__)


def sample(
    name: str, source: GeneratedImages, requests: Sequence[ImageRequest], judge: ImageJudge
) -> tuple[list[Image.Image], list[ImageResult]]:
    from tqdm import tqdm

    from dpt.evaluation.bench.results import open_image
    from dpt.evaluation.bench.run import BATCH

    results: list[ImageResult] = []
    with tqdm(total=len(requests), desc=name, unit="image", disable=None) as bar:
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            results += judge(name, batch, source.images(batch))
            bar.update(len(batch))
    return [open_image(source.folder / request.file) for request in requests], results


def sheet_of(
    requests: Sequence[ImageRequest],
    images: Mapping[str, Sequence[Image.Image]],
    results: Mapping[str, Sequence[ImageResult]],
) -> Image.Image:
    """A row per image of a prompt, a column per method."""
    from dpt.evaluation.contact_sheet import contact_sheet

    cells = [(name, row) for row in range(len(requests)) for name in images]
    return contact_sheet(
        [images[name][row] for name, row in cells],
        [f"{name}: {results[name][row].verdict}" for name, row in cells],
        columns=len(images),
        marks=[results[name][row].passed for name, row in cells],
        row_titles=[request.prompt.text for request in requests],
    )


def table(requests: Sequence[ImageRequest], results: Mapping[str, Sequence[ImageResult]]) -> list[str]:
    first = max(len("prompt"), *(len(request.prompt.text) for request in requests))
    rows = [["prompt", *results]]
    rows += [
        [request.prompt.text, *(VERDICTS[results[name][row].passed] for name in results)]
        for row, request in enumerate(requests)
    ]
    widths = [first, *(max(len(name), *map(len, VERDICTS.values())) for name in results)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def closing(results: Mapping[str, Sequence[ImageResult]]) -> list[str]:
    """How many images are right by each method, in one line."""
    counts = {name: sum(bool(result.passed) for result in rows) for name, rows in results.items()}
    total = len(next(iter(results.values())))
    if any(result.passed is None for rows in results.values() for result in rows):
        return []
    return ["", f"right of {total}: " + ", ".join(f"{name} {count}" for name, count in counts.items())]


WAITING = 16
"""Requests in the queue; further ones are refused."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class PageOptions:
    """Serve a page that draws a prompt with two methods side by side, from the same noise.

    The page listens on this machine only, unless --host says otherwise.
    """

    pretrained_model_name_or_path: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER|HUB_ID")] = ()
    """The models to choose from. Default: the embedded ones."""
    methods: tuple[str, ...] = ()
    """Further methods of the first model, as NAME=PATH of a checkpoint or any LoRA file."""
    host: str = "127.0.0.1"
    port: int = 7860
    num_timesteps: int = 25
    guidance_scale: float | None = None
    """Default: that of the model's generation_defaults.json, else 7.5."""
    scheduler: str = "ddim"
    keep_methods: int = 4
    """Methods that stay in memory. Each holds a copy of the model."""


def demo(options: PageOptions) -> None:
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False")
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("the demo page needs gradio: pip install 'dpt[demo]'") from None
    if not 1 <= options.port <= 65535:
        fail(f"--port must be from 1 to 65535, not {options.port}")
    if options.keep_methods < 1 or options.num_timesteps < 1:
        fail("--keep_methods and --num_timesteps must be at least 1")
    from dpt.demo.page import build
    from dpt.demo.studio import Studio

    models = options.pretrained_model_name_or_path or tuple(EMBEDDED_MODELS)
    studio = Studio(
        tuple(dict.fromkeys(models)),
        options.methods,
        options.num_timesteps,
        options.guidance_scale,
        options.scheduler,
        options.keep_methods,
    )
    print("opening the first model ...")
    studio.method(studio.models[0], "base")
    page, style = build(studio)
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    try:
        page.launch(server_name=options.host, server_port=options.port, share=False, quiet=True, **style,
                    prevent_thread_lock=True)  # fmt: skip
    except OSError as error:
        fail(f"cannot listen on {options.host}, port {options.port}: {error}; choose another --port")
    print(f"the page is at http://{options.host}:{options.port}; stop it with Ctrl-C", flush=True)
    page.block_thread()
