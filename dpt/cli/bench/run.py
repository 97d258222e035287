"""`dpt bench run` and `dpt bench score`: sample a suite with several methods, judge every image, judge it again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dpt.cli.bench.common import (
    JUDGE_KEYS,
    JudgeOptions,
    image_folder,
    judge_identity,
    method_lock,
    read_record,
    recorded_models,
    recorded_requests,
    recorded_suite,
    register_method,
    selected_methods,
    write_errors,
)
from dpt.cli.common.console import versions, warn, warn_of_unknown_words
from dpt.distributed import Processes, processes, take_own_gpu
from dpt.errors import fail
from dpt.evaluation.bench.results import LIBRARIES_KEY, OPTIONS_KEY, drop_cut_line, read_lines, repair
from dpt.methods.base import GenerationConfig, Method, MethodConfig
from dpt.methods.registry import BASE, parse_methods
from dpt.untrusted import MOST_IMAGES

if TYPE_CHECKING:
    from dpt.evaluation.bench.columns import Cost
    from dpt.evaluation.bench.run import ExtraScores, ImageJudge, ImageRequest, ImageSource, JudgeImages
    from dpt.evaluation.suites.base import Suite


@dataclass(frozen=True)
class SuiteOptions:
    """The prompts."""

    suite: Annotated[str, tyro.conf.arg(metavar="NAME[=FILE]")] = "pocket"
    """pocket, lmd, sr2d, geneval=FILE, coco-nss1k=FILE or prompts=FILE."""
    categories: tuple[str, ...] = ()
    """Categories to sample. Default: all of the suite's; for pocket, all but complex."""
    prompts: int | None = None
    """Prompts per category, spread evenly over the suite. Default: all; for pocket, 300."""
    per_prompt: int = 4
    """Images per prompt."""
    seed: int = 0
    """Another seed gives other prompts; the pocket suite only."""

    def with_defaults(self) -> SuiteOptions:
        from dpt.evaluation.suites.pocket import DEFAULT_CATEGORIES, DEFAULT_PROMPTS

        if self.suite != "pocket":
            return self
        prompts = DEFAULT_PROMPTS if self.prompts is None else self.prompts
        return replace(self, categories=self.categories or DEFAULT_CATEGORIES, prompts=prompts)

    def load(self) -> Suite:
        from dpt.evaluation.suites.registry import load

        return load(self.suite, self.categories, self.prompts, self.seed)


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
@dataclass(frozen=True)
class RunOptions:
    """Sample a suite with each method, from the same noise, and judge every image with a detector.

    Interrupt and repeat at will: the same command resumes. Results go to OUT/METHOD.jsonl, images to OUT/METHOD/.
    Under accelerate launch -m dpt or torchrun -m dpt, processes share the images; the results are the same.
    """

    methods: tyro.conf.Positional[tuple[str, ...]]
    """Methods to compare. base: the model itself. control, control-long, dpt, corrected, best4, best8, distilled,
    ipr1, ipr, ipr-dpt, hps: shipped checkpoints of an embedded model, where it has them. NAME=PATH: the model with the
    LoRA at PATH, a training result or any LoRA file. NAME=PATH,KEY=VALUE,...: factor, target, norm, start, end and
    every correct with the adapter at PATH; candidates=N keeps the best of N; lora=off leaves the LoRA out; also=PATH
    adds a second one; negative_prompt=TEXT replaces the checkpoint's (empty for none); negative_lora=PATH predicts the
    negative half of guidance. sld repairs the images of base, METHOD+sld=DETECTOR those of METHOD. More:
    docs/benchmark.md."""
    out: Path = Path("outputs/bench")
    suite: SuiteOptions = field(default_factory=SuiteOptions)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    judge: JudgeOptions = field(default_factory=JudgeOptions)


def run(options: RunOptions) -> None:
    generation = options.generation
    for line in generation.defaults().describe(["guidance_scale"] if generation.sampler.guidance_scale is None else []):
        print(line)
    options = with_defaults(options)
    check_numbers(options)
    generation = options.generation
    model = generation.pretrained_model_name_or_path
    methods = parse_methods(options.methods, generation.sampler.num_timesteps, model)
    with processes() as group:
        take_own_gpu()
        run_methods(methods, options, group)


def check_numbers(options: RunOptions) -> None:
    """Check limits before any prompt is generated."""
    suite = options.suite
    limited = {
        "prompts": suite.prompts,
        "per_prompt": suite.per_prompt,
        "num_timesteps": options.generation.sampler.num_timesteps,
    }
    for name, value in limited.items():
        if value is not None and not 1 <= value <= MOST_IMAGES:
            fail(f"--{name} must be from 1 to {MOST_IMAGES:,}, not {value}")
    total = (suite.prompts or 1) * max(1, len(suite.categories)) * suite.per_prompt
    if total > MOST_IMAGES:
        fail(f"--prompts and --per_prompt give {total:,} images per method; at most {MOST_IMAGES:,} are possible")


def run_methods(methods: Sequence[MethodConfig], options: RunOptions, group: Processes) -> None:
    suite = options.suite.load()
    model = options.generation.pretrained_model_name_or_path
    if group.is_main:
        warn_of_unknown_words(model, (prompt.text for prompt in suite.prompts))
    judge = options.judge.open(suite, model)
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
    from dpt.evaluation.bench.columns import cost_file, record_training
    from dpt.evaluation.bench.run import GeneratedImages, all_requests, merge_shards

    requests, lines = all_requests(suite, options.suite.per_prompt), options.out / f"{config.name}.jsonl"
    method = config.open(options.generation)
    with ExitStack() as stack:

        def start() -> None:
            stack.enter_context(method_lock(options.out, config.name))
            identity = {**judge_identity(suite, judge), **model_as_recorded(options, method.identity)}
            with write_errors(options.out):
                repair_and_warn(lines)
                merge_shards(lines, requests)  # of an interrupted run of several processes
            known = {line.key for line in read_lines(lines)} if lines.exists() else set()
            drawn_by = versions() if any(request.key not in known for request in requests) else None
            register_method(
                options.out, recorded_options(options), config.name, identity, drawn_by, continued=bool(known)
            )
            with write_errors(options.out):
                if cost_file(lines).exists():
                    drop_cut_line(cost_file(lines))
                if (views := training_of(config)) is not None:
                    record_training(lines, views)

        group.from_main(start)
        starting, before = repaired_where_drawn(config, method, options.out, requests)
        source = GeneratedImages(starting, options.out / config.name, cost_file(lines), before)

        share_benchmark(config.name, requests, source, judge, options.out, group)


def repair_and_warn(lines: Path) -> None:
    if repeated := repair(lines):
        warn(f"{lines} had {repeated} duplicate lines, left by two runs at once; they were removed")


def share_benchmark(
    name: str,
    requests: Sequence[ImageRequest],
    source: ImageSource,
    judge: JudgeImages,
    out: Path,
    group: Processes,
    sort: bool = False,
) -> None:
    """Write OUT/NAME.jsonl: each process its part, then the main one merges them."""
    from tqdm import tqdm

    from dpt.evaluation.bench.run import BATCH, Shard, merge_shards, run_benchmark

    shard = Shard(group.rank, group.count)
    total = sum(shard.holds(number // BATCH) for number in range(len(requests)))

    def write_own_part() -> None:
        with write_errors(out):
            run_benchmark(name, requests, source, judge, out, bar.update, shard)

    with write_errors(out), tqdm(total=total, desc=name, unit="image", disable=not group.is_main) as bar:
        group.gather(write_own_part)
        group.from_main(lambda: merge_shards(out / f"{name}.jsonl", requests, sort))


def repaired_where_drawn(
    config: MethodConfig, method: Method, out: Path, requests: Sequence[ImageRequest]
) -> tuple[Method, Cost | None]:
    """SLD that repairs the images of its base method, and what those cost, if the folder has all of them."""
    from dpt.evaluation.bench.columns import read_costs
    from dpt.evaluation.bench.results import open_image
    from dpt.evaluation.bench.run import drawing, is_whole_image
    from dpt.methods.sld.method import RepairOfDrawn, SLDConfig, SLDMethod

    if not (isinstance(config, SLDConfig) and isinstance(method, SLDMethod)):
        return method, None
    base = config.base.name
    known = read_record(out)["methods"].get(base, {})
    same = all(known.get(key) == value for key, value in method.base.identity.items())
    cost = read_costs(out, [base]).get(base)
    files = {drawing(request): out / base / request.file for request in requests}
    if not (same and cost and all(map(is_whole_image, files.values()))):
        return method, None
    return RepairOfDrawn(method, lambda request: open_image(files[request])), cost


def training_of(config: MethodConfig) -> int | None:
    """How many examples the method's checkpoints were trained on, where that is recorded."""
    from dpt.checkpoints.open import training_views

    drawing = getattr(config, "base", config)
    checkpoints = [getattr(drawing, name, None) for name in ("checkpoint", "also")]
    views = [training_views(checkpoint) for checkpoint in checkpoints if checkpoint is not None]
    return sum(count for count in views if count is not None) if views and None not in views else None


def model_as_recorded(options: RunOptions, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity, with the model's hash in the form that an earlier version wrote into the folder."""
    from dpt.backbone.identity import is_model

    others = recorded_models(options.out) - {identity.get("model")}
    if "model" not in identity or not others:
        return dict(identity)
    folder = options.generation.model_folder()
    return {**identity, "model": next((old for old in sorted(others) if is_model(old, folder)), identity["model"])}


def with_defaults(options: RunOptions) -> RunOptions:
    """Fill in the defaults of the model and of the pocket suite, as they are recorded."""
    return replace(options, suite=options.suite.with_defaults(), generation=options.generation.with_defaults())


def recorded_options(options: RunOptions) -> dict[str, Any]:
    """The values of the flags, under the flags' names."""
    from dpt.records import to_flat

    groups = (options.suite, options.generation, options.judge)
    return {key: value for group in groups for key, value in to_flat(group).items() if key != "allow_other_base"}


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class ScoreOptions:
    """Judge the images of `dpt bench run` with another detector, or add scores to its results.

    Interrupt and repeat at will; an image that was drawn again since is judged again. Under torchrun -m dpt, processes
    share the images. Results go to OUT/METHOD.jsonl, for `dpt bench report OUT`.
    """

    folder: tyro.conf.Positional[Path]
    """The output folder of `dpt bench run`."""
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
    with processes() as group:
        take_own_gpu()
        score_methods(options, group)


def score_methods(options: ScoreOptions, group: Processes) -> None:
    from dpt.records import to_plain

    judges = options.judge
    record = read_record(options.folder)
    suite = recorded_suite(record, options.suite)
    model = str(record[OPTIONS_KEY]["pretrained_model_name_or_path"])
    judge = judges.open(suite, model) if judges.detector else judges.open_scores(suite, model)
    recorded = {**record[OPTIONS_KEY], **to_plain(judges)}
    methods = selected_methods(options.methods, record, options.folder)
    for name in methods:
        score_method(name, options, record, recorded, suite, judge, group)
    if group.is_main:
        print(f"results: {', '.join(str(options.out / f'{name}.jsonl') for name in methods)}")
        print(f"next:    dpt bench report {options.out}{'' if 'base' in methods else f' --baseline {methods[0]}'}")


def score_method(
    name: str,
    options: ScoreOptions,
    record: Mapping[str, Any],
    recorded: Mapping[str, Any],
    suite: Suite,
    judge: ImageJudge | ExtraScores,
    group: Processes,
) -> None:
    from dpt.evaluation.bench.columns import MethodResults
    from dpt.evaluation.bench.run import ImageJudge, Rescore, StoredImages, drop_older_lines, merge_shards

    known = record["methods"][name]
    judge_images: JudgeImages
    if isinstance(judge, ImageJudge):
        method_identity = {key: value for key, value in known.items() if key not in (*JUDGE_KEYS, "suite_hash")}
        judge_images, identity = judge, {**judge_identity(suite, judge), **method_identity}
    else:
        results = MethodResults.read(options.folder / f"{name}.jsonl")
        judge_images, identity = Rescore(results, judge), {**known, **judge.identities}
    requests = recorded_requests(record, suite, options.folder / f"{name}.jsonl")
    pictures = image_folder(options.folder, record)
    lines = options.out / f"{name}.jsonl"
    with ExitStack() as stack:

        def start() -> bool:
            stack.enter_context(method_lock(options.out, name))
            # Relative, so that the two folders can be moved together.
            where = os.path.relpath(pictures, options.out)
            drawn_by = record.get(LIBRARIES_KEY, {}).get(name, {})
            register_method(options.out, recorded, name, identity, drawn_by, pictures=where)
            with write_errors(options.out):
                repair_and_warn(lines)
                changed = drop_older_lines(lines, requests, pictures / name)
                merge_shards(lines, requests)
            return changed

        changed = group.from_main(start)
        share_benchmark(name, requests, StoredImages(pictures / name), judge_images, options.out, group, sort=changed)
