"""A whole run: rounds of sampling, detection, relabelling, merging and training, each measured on held-out prompts.

    OUT/prompts.json, held_out.json      training prompts, and prompts to measure on
    OUT/round-R/images/                  sampled by the model of round R
    OUT/round-R/detections/              their detections
    OUT/round-R/relabelled/              imagefolder: captions that match the detections, loss weights
    OUT/round-R/dataset/                 imagefolder: merged with earlier rounds
    OUT/round-R/train/                   checkpoints, and the weights of round R + 1
    OUT/measured/                        held-out images and tables, a row per round
    OUT/lora/                            the weights of the last round

A folder appears only when complete. The same command continues a run, with the same result.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt.claims.facts import Box, Prompt
from dpt.claims.judge import DetectConfig, Detection, Detections, Unreadable
from dpt.claims.relabel import RelabelConfig, relabel
from dpt.distributed import ONE_PROCESS, Processes
from dpt.embedded import checkpoint_for
from dpt.errors import UserError
from dpt.evaluation.bench.results import ImageResult, read_results
from dpt.evaluation.bench.run import GeneratedImages, Shard, all_requests, merge_shards, run_benchmark
from dpt.evaluation.suites.registry import spread
from dpt.files import atomic_folder
from dpt.methods.base import DiffusionMethod
from dpt.methods.ipr.config import IPRConfig, SampleConfig
from dpt.methods.ipr.datasets import (
    OpenedDetector,
    RelabelCounts,
    counts_of,
    detect,
    merge,
    open_detector,
    relabel_images,
)
from dpt.methods.ipr.folders import replace_file, text_digest, write_json
from dpt.methods.ipr.pictures import AdapterJudge, relabel_by_adapter
from dpt.methods.ipr.prompts import PromptSet, load_prompts, read_prompts, row_of, write_prompts
from dpt.methods.ipr.sampling import ModelState, images_in, sample, settings_of
from dpt.methods.ipr.training import NEWER as NEWER_IN_TRAINING
from dpt.methods.ipr.training import train
from dpt.records import to_plain
from dpt.training.engine.run_folder import RunConfig, claimed

if TYPE_CHECKING:
    from PIL import Image

    from dpt.evaluation.bench.run import ImageJudge


TABLE, NUMBERS, SUMMARY = "table.md", "results.json", "summary.jsonl"

MEASURED = "measured.json"


@dataclass(frozen=True)
class Measurement:
    """The held-out prompts, how they are sampled, and who judges."""

    prompts: PromptSet
    config: SampleConfig
    judge: ImageJudge
    folder: Path
    dtype: str | None = None

    def measure(
        self,
        name: str,
        model: ModelState,
        group: Processes = ONE_PROCESS,
        on_done: Callable[[int], None] = lambda n: None,
    ) -> None:
        """Write FOLDER/NAME.jsonl and the images; an interrupted measurement continues."""
        requests = all_requests(self.prompts.suite, self.config.per_prompt)
        lines = self.folder / f"{name}.jsonl"
        marker = self.folder / f"{name}.{MEASURED}"
        if marker.is_file():
            on_done(len(requests))
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        backbone = model.open(self.dtype)
        method = DiffusionMethod(backbone, settings_of(self.config, backbone))
        group.from_main(lambda: merge_shards(lines, requests))
        source, shard = GeneratedImages(method, self.folder / name), Shard(group.rank, group.count)
        run_benchmark(name, requests, source, self.judge, self.folder, on_done, shard)
        group.gather(lambda: None)

        def finish() -> None:
            merge_shards(lines, requests)
            write_json(marker, {**model.identity(), "detector": self.judge.detector and self.judge.detector.identity})

        group.from_main(finish)


def report(
    folder: Path, names: Sequence[str], suite: str, rounds: Mapping[str, RelabelCounts], record: Mapping[str, Any]
) -> str:
    """Write the tables of all measured rounds, each compared with the first, and return them."""
    from dpt.evaluation.bench.columns import MethodResults
    from dpt.evaluation.bench.tables import compute_results, paired_difference, tables
    from dpt.evaluation.bench.verdicts import summary

    methods = {name: MethodResults.read(folder / f"{name}.jsonl") for name in names}
    results = compute_results(methods, suite)
    first, *others = names
    differences = [paired_difference(methods[name], methods[first]) for name in others]
    text = "\n\n".join(part for part in (tables(results, differences), round_table(rounds)) if part)
    numbers = {
        **record,
        "results": [asdict(result) for result in results],
        "differences": [asdict(difference) for difference in differences],
        "training": {name: asdict(counts) for name, counts in rounds.items()},
    }
    write_json(folder / NUMBERS, numbers)
    replace_file(folder / TABLE, f"{text}\n".encode())
    replace_file(folder / SUMMARY, "".join(summary(methods)).encode())
    return text


def round_table(rounds: Mapping[str, RelabelCounts]) -> str:
    """A Markdown table of the relabelling counts of each round."""
    if not rounds:
        return ""
    lines = ["| training images of | images | correct | relabelled | left out | wrong |", "|---|---|---|---|---|---|"]
    for name, counts in rounds.items():
        wrong = ", ".join(f"{reason} {n}" for reason, n in counts.reasons.items()) or "-"
        left_out = ", ".join(f"{n} ({why})" for why, n in counts.skipped.items()) or "0"
        lines.append(f"| {name} | {counts.images} | {counts.correct} | {counts.relabelled} | {left_out} | {wrong} |")
    return "\n".join(lines)


SHEET = "sheet.png"

ROWS = 8

SIDE = 240
"""Pixels of an image on the sheet, about."""

RIGHT, WRONG = (30, 130, 60), (200, 40, 40)


def write_sheet(
    folder: Path,
    names: Sequence[str],
    prompts: Sequence[Prompt],
    config: RelabelConfig,
    query_config: DetectConfig | None,
    file: Path,
) -> None:
    """The first image of evenly spread prompts, of several nouns if there are any, as measured in each round."""
    from dpt.evaluation.contact_sheet import contact_sheet

    results = {name: {line.key: line for line in read_results(folder / f"{name}.jsonl")} for name in names}
    pictures, captions = [], []
    related = [prompt for prompt in prompts if len(prompt.nouns) > 1]
    for prompt in spread(related or list(prompts), ROWS):
        for name in names:
            result = results[name][(prompt.id, 0)]
            pictures.append(_with_boxes(folder / name / f"{prompt.id}-0.png", result))
            captions.append(f"{name}: {_caption(prompt, result, config, query_config)}")
    title = "Held-out prompts, the same noise in every round. Green boxes: the image shows its prompt."
    contact_sheet(pictures, captions, columns=len(names), title=title).save(file, optimize=True)


def _caption(prompt: Prompt, result: ImageResult, config: RelabelConfig, query_config: DetectConfig | None) -> str:
    new = relabel(prompt, detections_of(result), config, query_config)
    if new.correct:
        return prompt.text
    return f"{prompt.text} -> {new.caption or new.skipped}"


def detections_of(result: ImageResult) -> Detections:
    """The stored detections; unreadable regions get an empty box, since results do not store theirs."""
    objects = (Detection(o.label, Box(*o.box), o.confidence, o.colour, o.size) for o in result.objects)
    unreadable = tuple(Unreadable(Box(0, 0, 0, 0), "unreadable") for _ in range(result.unreadable))
    return Detections(tuple(objects), unreadable)


def _with_boxes(file: Path, result: ImageResult) -> Image.Image:
    from PIL import Image, ImageDraw

    from dpt.evaluation.bench.results import open_image

    picture = open_image(file)
    factor = max(1, round(SIDE / picture.width))
    shown = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(shown)
    colour = RIGHT if result.passed else WRONG
    for detected in result.objects:
        pen.rectangle([factor * side for side in detected.box], outline=colour, width=2)
    return shown


PROMPTS, HELD_OUT = "prompts.json", "held_out.json"

NOT_COMPARED = frozenset(
    {"checkpointing_steps", "logging_steps", "dataloader_num_workers", "gradient_checkpointing", "also", "judge_ckpt"}
)
"""Options that may change when a run resumes."""

NEWER = NEWER_IN_TRAINING | {"prompts_per_category", "measure_per_prompt", "measure_timesteps"}
"""Options that earlier versions did not have."""

Progress = Callable[[str, int], Callable[[int], None]]
"""(what, total) -> a function that takes how many more are done."""


@dataclass(frozen=True)
class IPRRun:
    config: IPRConfig
    out: Path
    dtype: str | None = None
    group: Processes = ONE_PROCESS
    say: Callable[[str], None] = print
    progress: Progress = lambda what, total: lambda n: None

    def folder(self, round_: int, stage: str) -> Path:
        return self.out / f"round-{round_}" / stage

    def run(self) -> bool:
        """Whether the run is finished; False if it was stopped."""
        training, held_out = load_prompts(self.config.prompt)
        record = self._record(training, held_out)
        with claimed(self.out, record) if self.group.is_main else nullcontext():
            self.group.from_main(lambda: self._keep_prompts(training, held_out))
            return self._rounds(training, held_out)

    def _rounds(self, training: PromptSet, held_out: PromptSet) -> bool:
        detector, measurement = self._detector(training), self._measurement(held_out)
        model = ModelState(self.config.pretrained_model_name_or_path)
        rounds: dict[str, RelabelCounts] = {}
        self._measure(measurement, 0, model)
        for round_ in range(self.config.rounds):
            dataset = self._dataset(round_, model, training, detector)
            rounds[_name(round_)] = counts_of(self.folder(round_, "relabelled"))
            trained = self._train(round_, dataset, model)
            if trained is None:
                return False
            model = trained
            self._measure(measurement, round_ + 1, model)
        self.say(self.group.from_main(lambda: self._publish(model)))
        if measurement is not None:
            names = [_name(round_) for round_ in range(self.config.rounds + 1)]
            self.group.from_main(lambda: self._report(measurement, names, held_out.name, rounds))
        return True

    def _dataset(self, round_: int, model: ModelState, training: PromptSet, detector: OpenedDetector) -> Path:
        """Sample, judge, relabel and merge."""
        config, samples = self.config, self.folder(round_, "images")
        on_done = self.progress(f"round {round_}: sampling", len(training.prompts) * config.sample.per_prompt)
        sample(
            training.prompts, model, config.sample, samples, round_=round_, seed=config.seed, dtype=self.dtype,
            group=self.group, on_done=on_done,
        )  # fmt: skip
        by_adapter = config.judge.judge == "adapter"
        counts = self._by_adapter(round_, samples) if by_adapter else self._by_detector(round_, samples, detector)
        self.say(f"round {round_}: {counts.text}")
        parts = [self.folder(number, "relabelled") for number in config.merging.rounds(round_)]
        self.group.from_main(lambda: merge(parts, self.folder(round_, "dataset"), config.merging))
        return self.folder(round_, "dataset")

    def _by_detector(self, round_: int, samples: Path, detector: OpenedDetector) -> RelabelCounts:
        detections, config = self.folder(round_, "detections"), self.config
        on_done = self.progress(f"round {round_}: detecting", images_in(samples))
        detect(samples, detector, detections, group=self.group, on_done=on_done)
        out = self.folder(round_, "relabelled")
        return self.group.from_main(lambda: relabel_images(samples, detections, out, config.relabel, config.weight))

    def _by_adapter(self, round_: int, samples: Path) -> RelabelCounts:
        base, config = self.config.pretrained_model_name_or_path, self.config
        checkpoint = config.judge.judge_ckpt or checkpoint_for(base)
        if checkpoint is None:
            raise UserError("--judge adapter needs a checkpoint with an adapter: give --judge_ckpt")
        out, on_done = self.folder(round_, "relabelled"), self.progress(f"round {round_}: scoring", images_in(samples))
        judge = AdapterJudge.open(base, checkpoint)
        return relabel_by_adapter(samples, judge, out, config.relabel, config.weight, group=self.group, on_done=on_done)

    def _train(self, round_: int, dataset: Path, model: ModelState) -> ModelState | None:
        config = self.config
        start = model if config.train.start == "latest" else ModelState(config.pretrained_model_name_or_path)
        trained = train(
            dataset, start, config.train, self.folder(round_, "train"), round_=round_, seed=config.seed,
            dtype=self.dtype, group=self.group,
        )  # fmt: skip
        if trained.model is None:
            self.say(f"round {round_}: stopped after step {trained.steps}; the same command continues")
        return trained.model

    def _measure(self, measurement: Measurement | None, round_: int, model: ModelState) -> None:
        if measurement is not None:
            images = len(measurement.prompts.prompts) * measurement.config.per_prompt
            on_done = self.progress(f"round {round_}: measuring", images)
            measurement.measure(_name(round_), model, self.group, on_done)

    def _detector(self, prompts: PromptSet) -> OpenedDetector:
        coloured = any(noun.colour for prompt in prompts.prompts for noun in prompt.nouns)
        return open_detector(self.config.detect, prompts.detector, prompts.detect_config, coloured)

    def _measurement(self, held_out: PromptSet) -> Measurement | None:
        """The held-out images are judged by the suite's rules and the run's detector."""
        from dpt.evaluation.bench.run import ImageJudge

        if not held_out.prompts:
            return None
        detector = self._detector(held_out)
        judge = ImageJudge(detector.detector, detector.config)
        sampling = self.config.measure.of(self.config.sample)
        return Measurement(held_out, sampling, judge, self.out / "measured", self.dtype)

    def _record(self, training: PromptSet, held_out: PromptSet) -> RunConfig:
        model = ModelState(self.config.pretrained_model_name_or_path)
        values: dict[str, Any] = {"rounds": self.config.rounds, "seed": self.config.seed, "dtype": self.dtype}
        for group in to_plain(self.config).values():
            if isinstance(group, dict):
                values |= {name: value for name, value in group.items() if name not in NOT_COMPARED}
        return RunConfig({**values, **model.identity()}, frozenset({"rounds", "suite"}), NEWER, choose="--out")

    def _keep_prompts(self, training: PromptSet, held_out: PromptSet) -> None:
        """Write the prompts of a new run; refuse others in a run that is continued."""
        for name, prompts in ((PROMPTS, training.prompts), (HELD_OUT, held_out.prompts)):
            file = self.out / name
            if not file.exists():
                write_prompts(prompts, file)
            elif prompts and _digest(read_prompts(file)) != _digest(prompts):
                raise UserError(
                    f"the prompts of {self.config.prompt.suite} are not those of {file}, with which this run began: "
                    "restore them, or choose another --out"
                )

    def _publish(self, model: ModelState) -> str:
        """Copy the last LoRA to OUT/lora; returns where the weights are."""
        if model.lora is None:
            return f"the model of the last round: {model.base}"
        with atomic_folder(self.out / "lora", replace=True) as work:
            shutil.copytree(model.lora / "lora", work, dirs_exist_ok=True)
        return f"the LoRA of the last round: {self.out / 'lora'}"

    def _report(self, measurement: Measurement, names: list[str], suite: str, rounds: dict[str, RelabelCounts]) -> None:
        record = {"config": to_plain(self.config)}
        folder = measurement.folder
        text = report(folder, names, suite, rounds, record)
        prompts, queries = measurement.prompts.prompts, measurement.judge.query_config
        write_sheet(folder, names, prompts, self.config.relabel, queries, folder / SHEET)
        self.say(f"\n{text}\n\ntables: {folder / 'table.md'}\nsheet:  {folder / SHEET}")


def _digest(prompts: tuple[Prompt, ...]) -> str:
    return text_digest([row_of(prompt) for prompt in prompts])


def _name(round_: int) -> str:
    return f"round-{round_}"
