"""`dpt bench run`: sample a suite with several methods and judge every image."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dpt.cli.bench.judges import judge_identity, open_extra_scores, open_judge
from dpt.cli.bench.record import method_lock, register_method, write_errors
from dpt.cli.common.console import warn
from dpt.distributed import Processes, processes, take_own_gpu
from dpt.embedded import EMBEDDED, model_location
from dpt.errors import fail
from dpt.evaluation.bench.results import repair
from dpt.generation_defaults import GenerationDefaults, generation_defaults
from dpt.methods.base import GenerationConfig, MethodConfig
from dpt.methods.registry import BASE, parse_methods
from dpt.untrusted import MOST_IMAGES

if TYPE_CHECKING:
    from dpt.evaluation.bench.judging import ImageJudge
    from dpt.evaluation.suites.base import Suite

__all__ = ["BASE", "RunOptions", "run"]

SUITE_HELP = "pocket, lmd, sr2d, geneval=FILE, coco-nss1k=FILE or prompts=FILE."


@dataclass(frozen=True)
class RunOptions:
    """Sample a suite with each method, from the same noise, and judge every image with a detector.

    Interrupt and repeat at will: the same command resumes. Results go to OUT/METHOD.jsonl, images to OUT/METHOD/.
    Under accelerate launch -m dpt or torchrun -m dpt, processes share the images; the results are the same.
    """

    methods: tyro.conf.Positional[tuple[str, ...]]
    """base for the model itself; control, dpt, corrected, best4 for checkpoints of the embedded model; NAME=PATH for
    the model with the LoRA at PATH: a training result, or any LoRA file. Options after the path: ,factor=NUMBER to
    correct with the adapter there (and ,target= ,norm= ,start= ,end= ,every=), ,candidates=N to keep the best of N,
    ,lora=off, and ,negative_prompt=TEXT instead of the one that the checkpoint carries (empty for none),
    and ,negative_lora=PATH for a LoRA that predicts the negative half of guidance. sld repairs the images of base, and
    METHOD+sld=DETECTOR those of any method (docs/sld.md)."""
    out: Path = Path("outputs/bench")
    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    suite: Annotated[str, tyro.conf.arg(metavar="NAME[=FILE]", help=SUITE_HELP)] = "pocket"
    detector: Annotated[str | None, tyro.conf.arg(metavar="oracle|none|FOLDER|HUB_ID")] = None
    """The judge: oracle for the pocket suite; owlv2, owlvit, grounding-dino, detr, rt-detr, d-fine, or any
    checkpoint of one of these; none to sample now and judge later with `dpt bench score`. Default: the suite's own."""
    colours: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """A CLIP model that names the colour of each box, for suites with colours and detectors that do not read them."""
    clip: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """A CLIP model that also scores each image with its prompt; the pocket's own is ckpt/pocket/clip."""
    itm: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A checkpoint whose adapter scores each image with its prompt. Not a fair test of images that were corrected
    or chosen by such a score."""
    hps: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """A preference classifier of `dpt prefer train`, PickScore, or any CLIP or SigLIP, that scores each image. Use
    one that did not select what a method was tuned on."""
    categories: tuple[str, ...] = ()
    """Categories to sample. Default: all of the suite's; for pocket, all but complex."""
    prompts: int | None = None
    """Prompts per category, spread evenly over the suite. Default: all; for pocket, 300."""
    per_prompt: int = 4
    """Images per prompt."""
    seed: int = 0
    """Another seed gives other prompts; the pocket suite only."""
    num_timesteps: int = 25
    guidance_scale: float | None = None
    """Default: that of the model's generation_defaults.json, else 7.5."""
    scheduler: str = "ddim"
    allow_other_base: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Use checkpoints that were trained on another base model, with a warning."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Number format of the UNet and the text encoder; default: by the device. A CPU with bf16 instructions samples more
    than twice as fast with bf16."""


def run(options: RunOptions) -> None:
    if options.guidance_scale is None and (line := model_defaults(options).describe(["guidance_scale"])):
        print(line)
    options = with_defaults(options)
    check_numbers(options)
    methods = parse_methods(options.methods, options.num_timesteps, options.pretrained_model_name_or_path)
    with processes() as group:
        take_own_gpu()
        run_methods(methods, options, group)


def check_numbers(options: RunOptions) -> None:
    """Check limits before any prompt is generated."""
    for name in ("prompts", "per_prompt", "num_timesteps"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= MOST_IMAGES:
            fail(f"--{name} must be from 1 to {MOST_IMAGES:,}, not {value}")
    total = (options.prompts or 1) * max(1, len(options.categories)) * options.per_prompt
    if total > MOST_IMAGES:
        fail(f"--prompts and --per_prompt give {total:,} images per method; at most {MOST_IMAGES:,} are possible")


def run_methods(methods: Sequence[MethodConfig], options: RunOptions, group: Processes) -> None:
    from dpt.evaluation.suites.registry import load

    suite = load(options.suite, options.categories, options.prompts, options.seed)
    extra_scores = open_extra_scores(
        suite, options.clip, options.itm, options.pretrained_model_name_or_path, options.hps
    )
    judge = open_judge(suite, options.detector, options.colours, extra_scores)
    for method in methods:
        run_method(method, options, group, suite, judge)
    if group.is_main:
        print(f"images: {', '.join(f'{options.out / method.name}/' for method in methods)}")
        print(f"results:  {', '.join(str(options.out / f'{method.name}.jsonl') for method in methods)}")
        print(f"next:     dpt bench report {options.out}{baseline_flag(methods, options.out)}")


def baseline_flag(methods: Sequence[MethodConfig], out: Path) -> str:
    """The --baseline flag for `dpt bench report` if base was not run."""
    return "" if (out / f"{BASE}.jsonl").exists() else f" --baseline {methods[0].name}"


def run_method(config: MethodConfig, options: RunOptions, group: Processes, suite: Suite, judge: ImageJudge) -> None:
    from tqdm import tqdm

    from dpt.evaluation.bench import run as bench
    from dpt.evaluation.bench.requests import Shard, all_requests, merge_shards

    requests, lines = all_requests(suite, options.per_prompt), options.out / f"{config.name}.jsonl"
    method = config.open(generation_config(options))
    shard = Shard(group.rank, group.count)
    with ExitStack() as stack:

        def start() -> None:
            stack.enter_context(method_lock(options.out, config.name))
            identity = {**judge_identity(suite, judge), **method.identity}
            register_method(options.out, recorded_options(options), config.name, identity)
            with write_errors(options.out):
                if repeated := repair(lines):
                    warn(f"{lines} had {repeated} duplicate lines, left by two runs at once; they were removed")
                merge_shards(lines, requests)  # of an interrupted run of several processes

        group.from_main(start)
        source = bench.GeneratedImages(method, options.out / config.name)

        def draw_own_part() -> None:
            with write_errors(options.out):
                bench.run_benchmark(config.name, requests, source, judge, options.out, bar.update, shard)

        total = sum(shard.holds(number // bench.BATCH) for number in range(len(requests)))
        with (
            write_errors(options.out),
            tqdm(total=total, desc=config.name, unit="image", disable=not group.is_main) as bar,
        ):
            # Every process has written its part before the main one merges them.
            group.gather(draw_own_part)
            group.from_main(lambda: merge_shards(lines, requests))


def model_defaults(options: RunOptions) -> GenerationDefaults:
    from dpt.backbone.loading import locate_model

    return generation_defaults(locate_model(model_location(options.pretrained_model_name_or_path)))


def with_defaults(options: RunOptions) -> RunOptions:
    """Fill in the defaults of the model and of the pocket suite, as they are recorded."""
    from dpt.evaluation.suites.pocket import DEFAULT_CATEGORIES, DEFAULT_PROMPTS

    if options.guidance_scale is None:
        options = replace(options, guidance_scale=model_defaults(options).guidance_scale)
    if options.suite != "pocket":
        return options
    prompts = DEFAULT_PROMPTS if options.prompts is None else options.prompts
    return replace(options, categories=options.categories or DEFAULT_CATEGORIES, prompts=prompts)


def recorded_options(options: RunOptions) -> dict[str, Any]:
    from dpt.records import to_plain

    return {key: value for key, value in to_plain(options).items() if key not in ("methods", "out", "allow_other_base")}


def generation_config(options: RunOptions) -> GenerationConfig:
    assert options.guidance_scale is not None, "with_defaults sets it"
    return GenerationConfig(
        options.pretrained_model_name_or_path,
        options.num_timesteps,
        options.guidance_scale,
        options.scheduler,
        options.mixed_precision,
        options.allow_other_base,
    )
