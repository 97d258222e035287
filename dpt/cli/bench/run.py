"""`dpt bench run`: draw a suite by several methods and judge every picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dpt.cli.bench.judges import identity_of, open_beside, panel_for
from dpt.cli.bench.record import claim
from dpt.distributed import Processes, processes, take_own_gpu
from dpt.embedded import EMBEDDED, model_location
from dpt.errors import fail
from dpt.generation_defaults import GenerationDefaults, generation_defaults
from dpt.methods.registry import BASE, Method, parse_methods

if TYPE_CHECKING:
    from dpt.adapter import Adapter
    from dpt.backbone import Backbone
    from dpt.evaluation.bench.judging import ImageJudge
    from dpt.evaluation.suites.base import Suite


MADE_OF = ("model", "lora", "adapter", "correction", "candidates")
"""What `open_method` says a method is made of, as far as it has it."""

SUITE_HELP = "pocket, lmd, sr2d, geneval=FILE, coco-nss1k=FILE or prompts=FILE."


@dataclass(frozen=True)
class RunOptions:
    """Draw a suite by each method, from the same noise, and let a detector judge every picture.

    Stop and repeat at will: it goes on where it was left. Lines go into OUT/METHOD.jsonl, pictures into OUT/METHOD/.
    Processes that accelerate launch -m dpt or torchrun -m dpt starts share the pictures; the lines are the same.
    """

    methods: tyro.conf.Positional[tuple[str, ...]]
    """base for the model itself; control, dpt, corrected, best4 for what is trained on the embedded one; NAME=PATH for
    the model with the LoRA there: a result of training, or any LoRA file. After the path may stand ,factor=NUMBER to
    correct by the adapter there (and ,target= ,norm= ,start= ,end= ,every=), ,candidates=N to keep the best of N,
    and ,lora=off."""
    out: Path = Path("outputs/bench")
    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    suite: Annotated[str, tyro.conf.arg(metavar="NAME[=FILE]", help=SUITE_HELP)] = "pocket"
    detector: Annotated[str | None, tyro.conf.arg(metavar="oracle|none|FOLDER|HUB_ID")] = None
    """What judges: oracle for the pocket suite; owlv2, owlvit, grounding-dino, or any checkpoint of one of these;
    none to draw now and judge later by `dpt bench score`. Default: what the suite names."""
    colours: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """A CLIP that names the colour of each box, where the suite asks for colours and the detector tells none."""
    clip: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """A CLIP that scores each picture against its prompt, beside the judge; the pocket's own is ckpt/pocket/clip."""
    itm: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A checkpoint whose adapter scores each picture against its prompt; no test of pictures that were corrected or
    chosen by such a score."""
    categories: tuple[str, ...] = ()
    """Default: all of the suite, but for the pocket's complex."""
    prompts: int | None = None
    """Prompts per category, evenly spread; default: all, of the pocket's 300."""
    per_prompt: int = 4
    """Pictures per prompt."""
    seed: int = 0
    """Another seed has other prompts; the pocket suite only."""
    num_timesteps: int = 25
    guidance_scale: float | None = None
    """By default the model's own: its generation_defaults.json, or 7.5."""
    scheduler: str = "ddim"
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Number format of the UNet and the text encoder; by default what the device does well. A CPU that multiplies
    bf16 draws more than twice as fast with it."""


def run(options: RunOptions) -> None:
    if options.guidance_scale is None and (line := model_defaults(options).describe(["guidance_scale"])):
        print(line)
    options = completed(options)
    for name in ("prompts", "per_prompt", "num_timesteps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            fail(f"--{name} must be at least 1, not {value}")
    methods = parse_methods(options.methods, options.num_timesteps)
    with processes() as group:
        take_own_gpu()
        run_methods(methods, options, group)


def run_methods(methods: Sequence[Method], options: RunOptions, group: Processes) -> None:
    from dpt.evaluation.suites.registry import load

    suite = load(options.suite, options.categories, options.prompts, options.seed)
    beside = open_beside(suite, options.clip, options.itm, options.pretrained_model_name_or_path)
    panel = panel_for(suite, options.detector, options.colours, beside)
    for method in methods:
        run_method(method, options, group, suite, panel)


def run_method(method: Method, options: RunOptions, group: Processes, suite: Suite, panel: ImageJudge) -> None:
    from tqdm import tqdm

    from dpt.evaluation.bench import run as bench
    from dpt.evaluation.bench.requests import Shard, all_requests, merge_shards
    from dpt.sampling.draw import Settings

    asked, lines = all_requests(suite, options.per_prompt), options.out / f"{method.name}.jsonl"
    assert options.guidance_scale is not None
    settings = Settings(options.num_timesteps, options.guidance_scale, options.scheduler, correction=method.correction)
    backbone, adapter, made_of = open_method(method, options)

    def begin() -> None:
        claim(options.out, what_is_asked(options), method.name, {**identity_of(suite, panel), **made_of})
        merge_shards(lines, asked)  # what a run of several processes has left

    group.from_main(begin)
    source = bench.GeneratedImages(backbone, settings, options.out / method.name, adapter, method.candidates)
    shard = Shard(group.rank, group.count)
    total = sum(shard.holds(number // bench.TOGETHER) for number in range(len(asked)))
    with tqdm(total=total, desc=method.name, unit="picture", disable=not group.is_main) as bar:
        bench.run_benchmark(method.name, asked, source, panel, options.out, bar.update, shard)
    group.from_main(lambda: merge_shards(lines, asked))


def model_defaults(options: RunOptions) -> GenerationDefaults:
    from dpt.backbone.loading import locate_model

    return generation_defaults(locate_model(model_location(options.pretrained_model_name_or_path)))


def completed(options: RunOptions) -> RunOptions:
    """The options with the defaults of the model and of the pocket suite filled in, as they are recorded."""
    from dpt.evaluation.suites.pocket import USUAL, USUAL_PROMPTS

    if options.guidance_scale is None:
        options = replace(options, guidance_scale=model_defaults(options).guidance_scale)
    if options.suite != "pocket":
        return options
    prompts = USUAL_PROMPTS if options.prompts is None else options.prompts
    return replace(options, categories=options.categories or USUAL, prompts=prompts)


def what_is_asked(options: RunOptions) -> dict[str, Any]:
    from dpt.records import to_plain

    return {key: value for key, value in to_plain(options).items() if key not in ("methods", "out")}


def open_method(method: Method, options: RunOptions) -> tuple[Backbone, Adapter | None, dict[str, Any]]:
    """The model as that method has it, the adapter if it reads by one, and what they are made of."""
    from dpt.backbone import open_backbone
    from dpt.checkpoints import open_checkpoint
    from dpt.records import to_plain
    from dpt.weights import content_hash

    dtype = "float32" if options.mixed_precision == "no" else options.mixed_precision
    backbone = open_backbone(model_location(options.pretrained_model_name_or_path), dtype=dtype)
    made_of: dict[str, Any] = {"model": backbone.model_hash}
    if method.checkpoint is None:
        return backbone, None, made_of
    checkpoint = open_checkpoint(method.checkpoint)
    if checkpoint.lora is None and not method.reads:
        fail(f"{method.checkpoint} has no LoRA: {method.name} would draw what {BASE} draws")
    if checkpoint.adapter is None and method.reads:
        fail(f"{method.checkpoint} has no adapter, by which {method.name} would correct or choose")
    checkpoint.check_belongs(backbone)
    if checkpoint.lora is not None and method.lora:
        lora = checkpoint.attach(backbone)
        assert lora is not None
        lora.merge()
        made_of["lora"] = content_hash(checkpoint.lora.tensors)
    if checkpoint.adapter is None or not method.reads:
        return backbone, None, made_of
    adapter = checkpoint.adapter.to(backbone.device)
    how = {"correction": to_plain(method.correction), "candidates": method.candidates}
    return backbone, adapter, {**made_of, "adapter": content_hash(adapter.state_dict()), **how}
