"""The `dpt` command: finds the command that the first words name and hands it the rest."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import dpt
from dpt.cli.common.console import parse
from dpt.errors import UserError, run_command

SCRIPTS: dict[str, tuple[str, str]] = {
    "detect train-reader": ("dpt.cli.train.reader:main", "train the reader, a second judge of pocket pictures"),
    "prefer train": ("dpt.cli.prefer.train:main", "train a preference classifier on human choices"),
    "prefer tune": ("dpt.cli.prefer.tune:main", "tune a LoRA on selected images: train_hps.py"),
    "train hps": ("dpt.cli.prefer.tune:main", "tune a LoRA on selected images: train_hps.py"),
    "train ipr": ("dpt.cli.ipr.run:main", "train on relabelled samples, round after round: train_ipr.py"),
    "train stage1": ("dpt.cli.train.stages:main_stage1", "train an adapter on a frozen UNet: train_stage1.py"),
    "train stage2": ("dpt.cli.train.stages:main_stage2", "train an adapter and a LoRA together: train_stage2.py"),
    "txt2img": ("dpt.cli.txt2img.main:main", "sample images for a prompt or a file of prompts: txt2img.py"),
}
"""Commands with exit codes of their own, most of them aliases of the scripts: main(words) -> exit code."""

COMMANDS: dict[str, tuple[str, str]] = {
    "bench diff": ("dpt.cli.bench.diff:diff", "list what differs between two benchmarks, then compare their numbers"),
    "bench report": (
        "dpt.cli.bench.report:report",
        "count verdicts, compare methods in pairs, write tables and a page",
    ),
    "bench run": ("dpt.cli.bench.run:run", "sample a suite with several methods and judge every image"),
    "bench score": ("dpt.cli.bench.run:score", "judge existing images again with another detector or CLIP"),
    "cache": ("dpt.cli.commands.data:cache", "encode the images, and optionally the texts, of a data folder once"),
    "compare": ("dpt.cli.commands.compare:compare", "sample a few prompts with several methods, side by side, judged"),
    "data check": ("dpt.cli.commands.data:check", "report what is missing or broken in a data folder, file by file"),
    "data from-folder": (
        "dpt.cli.commands.from_folder:from_folder",
        "make a data folder for training from your images and captions",
    ),
    "data prepare": ("dpt.cli.commands.data:prepare", "write the per-caption hard negatives from their table"),
    "demo": ("dpt.cli.commands.compare:demo", "serve a page that draws a prompt with two methods side by side"),
    "download": ("dpt.cli.commands.checkpoints:download", "download the published checkpoint from the hub"),
    "evaluate_hps": ("dpt.cli.prefer.score:score", "published name of dpt prefer score"),
    "export": ("dpt.cli.commands.checkpoints:export", "convert a checkpoint for diffusers, ComfyUI or A1111"),
    "generate_images": ("dpt.cli.prefer.draw:draw", "published name of dpt prefer draw"),
    "info": ("dpt.cli.commands.checkpoints:info", "describe a checkpoint, a LoRA file, a training state or a model"),
    "ipr detect": ("dpt.cli.ipr.stages:detect", "detect objects in sampled images"),
    "ipr merge": ("dpt.cli.ipr.stages:merge", "merge relabelled rounds and other images into one folder"),
    "ipr prompts": ("dpt.cli.ipr.stages:prompts", "write the training and held-out prompts of a suite as JSON"),
    "ipr relabel": ("dpt.cli.ipr.stages:relabel", "write sampled images with corrected captions and weights"),
    "ipr report": ("dpt.cli.ipr.run:report", "report the accuracy of a run, of detected images or of a VISOR file"),
    "ipr run": ("dpt.cli.ipr.run:run", "train on relabelled samples of the model itself, round after round"),
    "ipr sample": ("dpt.cli.ipr.stages:sample", "sample images for a file of prompts"),
    "ipr train": ("dpt.cli.ipr.stages:train", "train a LoRA or the UNet on images with captions and weights"),
    "pocket build": ("dpt.cli.commands.pocket:build", "train the embedded model from scratch, resumably"),
    "pocket diagnose": (
        "dpt.cli.commands.pocket:diagnose",
        "measure which facts of a prompt a pocket's text encoder and layout keep",
    ),
    "pocket measure": ("dpt.cli.commands.pocket:measure", "sample the pocket suite and count correct images"),
    "prefer check": ("dpt.cli.prefer.train:check", "check preference files, and measure how well scorers predict them"),
    "prefer draw": ("dpt.cli.prefer.draw:draw", "sample several images for each prompt"),
    "prefer score": ("dpt.cli.prefer.score:score", "score images and their prompts with a preference classifier"),
    "prefer select": ("dpt.cli.prefer.score:select", "copy the clear winners and losers of each prompt for training"),
    "prefer synthesize": (
        "dpt.cli.prefer.draw:synthesize",
        "make preference data for the embedded model from a known taste",
    ),
    "process_diffusiondb": ("dpt.cli.prefer.score:score", "published name of dpt prefer score"),
    "probe": ("dpt.cli.commands.checkpoints:probe", "measure adapters by feature, timestep and type of negative"),
    "relabel": ("dpt.cli.ipr.run:relabel", "rewrite the captions of images to match what a detector finds"),
    "scenes check": (
        "dpt.cli.commands.scenes:check",
        "measure how well the oracle or the reader reads rendered scenes",
    ),
    "scenes export": ("dpt.cli.commands.scenes:export", "write rendered scenes in the published data formats"),
    "select_training_images": ("dpt.cli.prefer.score:select", "published name of dpt prefer select"),
    "sld bench": ("dpt.cli.sld.measure:bench", "count how often editing instructions are followed"),
    "sld correct": ("dpt.cli.sld.correct:correct", "repair images that do not show what their prompt says"),
    "sld demo": ("dpt.cli.sld.correct:demo", "correct or edit the images of a published JSON file"),
    "sld edit": ("dpt.cli.sld.correct:edit", "edit images by an instruction in words"),
    "sld measure": ("dpt.cli.sld.measure:measure", "correct the images of a benchmark, and count"),
}

GROUPS = sorted({name.split()[0] for name in {**COMMANDS, **SCRIPTS} if " " in name})

HYPHENATED = ("train-stage1", "train-stage2")
"""Earlier names of `train stage1` and `train stage2`."""

TITLE = "Discriminative probing and tuning for text-to-image models."


def main() -> None:
    words = sys.argv[1:]
    if words and words[0] in HYPHENATED:
        words = [*words[0].split("-"), *words[1:]]
    for name, (entry, _) in SCRIPTS.items():
        if words[: len(name.split())] == name.split():
            sys.exit(load(entry)(words[len(name.split()) :]))
    sys.exit(run_command(lambda: run(words)))


def run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(TITLE, {**COMMANDS, **SCRIPTS}))
    elif words[0] == "--version":
        print(f"dpt {dpt.__version__}")
    elif words[0] in GROUPS and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(overview(f"dpt {words[0]} has these commands:", commands_of(words[0])))
    else:
        name = command_name(words)
        entry = load(COMMANDS[name][0])
        entry(parse(entry, words[len(name.split()) :], prog=f"dpt {name}"))


def command_name(words: list[str]) -> str:
    """The command that the first words name."""
    for name in COMMANDS:
        if words[: len(name.split())] == name.split():
            return name
    known = commands_of(words[0]) if words[0] in GROUPS else {**COMMANDS, **SCRIPTS}
    given = " ".join(words[:2] if words[0] in GROUPS else words[:1])
    close = get_close_matches(given, [*known, *GROUPS], n=1) or get_close_matches(words[0], [*known, *GROUPS], n=1)
    hint = f", did you mean 'dpt {close[0]}'?" if close else f"; the commands are: {', '.join(known)}"
    raise UserError(f"there is no command 'dpt {given}'{hint}")


def commands_of(group: str) -> dict[str, tuple[str, str]]:
    return {name: entry for name, entry in {**COMMANDS, **SCRIPTS}.items() if name.split()[0] == group}


def load(entry: str) -> Callable[..., Any]:
    """MODULE:FUNCTION, imported only when the command runs."""
    module, function = entry.split(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return loaded


def overview(title: str, commands: dict[str, tuple[str, str]]) -> str:
    width = max(map(len, commands))
    lines = [f"  dpt {name:<{width}}  {summary}" for name, (_, summary) in sorted(commands.items())]
    return "\n".join([title, "", *lines, "", "Each command has --help."])
