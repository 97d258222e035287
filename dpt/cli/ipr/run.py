"""`dpt ipr run`, `train_ipr.py`, `dpt ipr report` and `dpt relabel`: all rounds, and what came of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dpt.claims.relabel import RelabelConfig
from dpt.cli.common.console import flag_value, parse, plain_warnings, warn
from dpt.cli.ipr.stages import Precision, dtype_of, no_progress, show_progress
from dpt.distributed import processes, take_own_gpu
from dpt.errors import fail, run_command
from dpt.methods.ipr.config import RECIPES, DetectorConfig, IPRConfig, WeightConfig
from dpt.training.engine.observers import EXIT_STOPPED


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class IPRRunOptions(IPRConfig):
    """Sample, detect, relabel, merge, train, measure; and again.

    Interrupt and repeat at will: the same command continues, between rounds and within them. Under accelerate launch,
    processes share the images and the training.
    """

    recipe: Annotated[Literal["sdv2", "sdv2-lora", "sdxl-lora"] | None, tyro.conf.arg(metavar="NAME")] = None
    """Start from the published hyper-parameters: sdv2 (the whole UNet), sdv2-lora or sdxl-lora. Other flags change
    them."""
    out: Path = Path("outputs/ipr")
    """Folder of the run."""
    mixed_precision: Annotated[Precision | None, tyro.conf.arg(metavar="no|fp16|bf16")] = None
    """Number format of the UNet and the text encoder; default: by the device. Trained weights are float32."""

    @classmethod
    def preset(cls, words: Sequence[str]) -> IPRRunOptions | None:
        """The options of the recipe that the command line names."""
        name = flag_value(words, "recipe")
        if name is None:
            return None
        if name not in RECIPES:
            fail(f"there is no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
        values = {field.name: getattr(RECIPES[name], field.name) for field in fields(IPRConfig)}
        return cls(**values, mixed_precision="fp16")

    @property
    def config(self) -> IPRConfig:
        return IPRConfig(**{field.name: getattr(self, field.name) for field in fields(IPRConfig)})


def run(options: IPRRunOptions) -> None:
    from dpt.methods.ipr.rounds import IPRRun

    with processes(cuda=True) as group:
        take_own_gpu()
        if group.is_main:
            for name, reason in options.config.unused_flags().items():
                warn(f"--{name} has no effect: {reason}")
        say: Callable[[str], None] = print if group.is_main else _silent
        progress = show_progress if group.is_main else no_progress
        finished = IPRRun(options.config, options.out, dtype_of(options.mixed_precision), group, say, progress).run()
    if not finished:
        sys.exit(EXIT_STOPPED)


def main(arguments: Sequence[str] | None = None) -> int:
    """For `accelerate launch train_ipr.py`."""
    words = sys.argv[1:] if arguments is None else arguments
    with plain_warnings():
        return run_command(lambda: run(parse(run, words, "train_ipr.py")))


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class IPRReportOptions:
    """Report the accuracy of the rounds of a run, of detected images, or of a VISOR result file."""

    path: tyro.conf.Positional[Path]
    """The folder of a run, a folder of `dpt ipr detect`, or a VISOR result file."""
    samples: Path | None = None
    """The folder of the images, for a folder of detections."""
    visor: Path | None = None
    """Also write the detections as a VISOR result file here."""


def report(options: IPRReportOptions) -> None:
    from dpt.evaluation.visor import read_visor, visor_scores

    measured = options.path / "measured" / "table.md"
    if options.path.is_file():
        print(visor_scores(read_visor(options.path)).text)
    elif measured.is_file():
        print(measured.read_text(), end="")
    elif (options.path / "detections.json").is_file():
        _report_detections(options)
    else:
        fail(f"{options.path} is neither a finished run, nor a folder of `dpt ipr detect`, nor a VISOR result file")


def _report_detections(options: IPRReportOptions) -> None:
    from dpt.evaluation.suites.sr2d import RELATIONS
    from dpt.evaluation.visor import accuracy_table, visor_results, visor_scores
    from dpt.methods.ipr.datasets import read_detections
    from dpt.methods.ipr.folders import write_json
    from dpt.methods.ipr.sampling import sampled_images

    if options.samples is None:
        fail("give the images of these detections: --samples FOLDER")
    images = sampled_images(options.samples)
    dump, config = read_detections(options.path)
    print(accuracy_table(images, dump, config))
    results = visor_results(images, dump)
    if any(entry["rel_type"] in RELATIONS for entry in results.values()):
        print(f"\n{visor_scores(results).text}")
    if options.visor is not None:
        if not results:
            fail("a VISOR result file lists prompts with two nouns, and these have none")
        options.visor.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.visor, results)
        print(f"wrote {options.visor}: {len(results)} images")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class RelabelPicturesOptions:
    """Rewrite the captions of a folder of images to match what a detector finds in them, with weights for training.

    A rule-based parser reads the captions: scenes, templates of LLM-grounded Diffusion, and sentences about nouns of
    COCO such as "two red cars and a dog" or "a cat to the left of a chair".
    """

    folder: tyro.conf.Positional[Path]
    """Images with metadata.jsonl, or with a .txt file beside each."""
    out: Path
    detect: DetectorConfig = field(default_factory=DetectorConfig)
    unparsed: Literal["drop", "keep"] = "drop"
    """Drop images whose caption cannot be parsed, or keep them with their caption and weight."""
    relabel: RelabelConfig = field(default_factory=RelabelConfig)
    weight: WeightConfig = field(default_factory=WeightConfig)


def relabel(options: RelabelPicturesOptions) -> None:
    from dpt.methods.ipr.pictures import PictureFolder, detector_of, relabel_pictures

    source = PictureFolder.read(options.folder)
    detector = detector_of(source, options.detect)
    counts = relabel_pictures(
        source, detector, options.out, options.relabel, options.weight, options.unparsed,
        show_progress("detecting", len(source.pictures)),
    )  # fmt: skip
    print(f"{counts.text}\n{options.out}: images with captions and weights, ready for `dpt ipr train`")
