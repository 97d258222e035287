"""The `dpt` command: finds the entry point that the first words name and hands it the rest."""

from __future__ import annotations

import importlib
import sys

from dpt.cli.common.console import parse
from dpt.errors import UserError, run_command

COMMANDS: dict[str, tuple[str, str]] = {
    "bench report": ("dpt.cli.bench.report:report", "count what was judged, compare methods in pairs, show it all"),
    "bench run": ("dpt.cli.bench.run:run", "draw a suite by several methods and judge every picture"),
    "bench score": ("dpt.cli.bench.score:score", "judge drawn pictures once more, by another detector or CLIP"),
    "cache": ("dpt.cli.commands.cache:cache", "encode all pictures of a data folder once, and its texts if asked to"),
    "data check": ("dpt.cli.commands.data:check", "say what of a data folder is missing or broken, by file"),
    "data prepare": ("dpt.cli.commands.data:prepare", "make the hard negatives by caption of their table"),
    "download": ("dpt.cli.commands.download:download", "fetch the published checkpoint from the hub"),
    "export": (
        "dpt.cli.commands.export:export",
        "write a trained result for other programs: diffusers, ComfyUI, A1111",
    ),
    "info": ("dpt.cli.commands.info:info", "say what a trained result, a LoRA file or a model is"),
    "pocket build": ("dpt.cli.commands.pocket:build", "make the embedded model from nothing, resumably"),
    "pocket measure": (
        "dpt.cli.commands.pocket:measure",
        "draw the pocket suite and let the oracle count what is right",
    ),
    "probe": ("dpt.cli.commands.probe:probe", "ask adapters what they know, by feature, timestep and type of negative"),
    "scenes check": ("dpt.cli.commands.scenes:check", "measure how well the oracle reads rendered scenes"),
    "scenes export": ("dpt.cli.commands.scenes:export", "write rendered scenes in the published data formats"),
}


def main() -> None:
    sys.exit(run_command(lambda: run(sys.argv[1:])))


def run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    name = next((n for n in COMMANDS if words[: len(n.split())] == n.split()), None)
    if name is None:
        raise UserError(f"there is no command 'dpt {' '.join(words[:2])}'; the commands are: {', '.join(COMMANDS)}")
    module, function = COMMANDS[name][0].split(":")
    entry = getattr(importlib.import_module(module), function)
    entry(parse(entry, words[len(name.split()) :], prog=f"dpt {name}"))


def overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  dpt {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    title = "Discriminative probing and tuning for text-to-image models."
    return "\n".join([title, "", *lines, "", "Each has --help."])
