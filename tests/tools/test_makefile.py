"""The commands of the Makefile exist and take their flags; nothing is run."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpt.cli.common.console import parse
from dpt.cli.main import COMMANDS, SCRIPTS, command_name, load
from dpt.cli.train.reader import TrainReaderOptions
from dpt.records import to_flat

ROOT = Path(__file__).parents[2]


def commands(*words: str) -> Iterator[list[str]]:
    """The words of every dpt command that a target would run."""
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    for line in done.stdout.replace("\\\n", " ").splitlines():
        if "-m dpt " in line:
            yield shlex.split(line.split("-m dpt ", 1)[1])


def parsed(words: list[str]) -> Any:
    name = next((name for name in SCRIPTS if words[: len(name.split())] == name.split()), None)
    if name is not None:
        assert name == "detect train-reader"
        return parse_train(words[2:])
    name = command_name(words)
    return parse(load(COMMANDS[name][0]), words[len(name.split()) :], prog=f"dpt {name}")


def parse_train(words: list[str]) -> TrainReaderOptions:
    def entry(options: TrainReaderOptions) -> None: ...

    entry.__annotations__["options"] = TrainReaderOptions
    options: TrainReaderOptions = parse(entry, words, prog="dpt detect train-reader")
    return options


@pytest.mark.parametrize("target", ["results", "results-mmdit", "sld", "hps", "ipr", "tables", "reader"])
def test_the_commands_of_a_target_are_understood(target: str) -> None:
    assert [parsed(words) for words in commands(target) if words[:2] != ["prefer", "train"]]


def test_the_quick_results_have_the_columns_of_the_whole() -> None:
    run, score, report = map(parsed, commands("results", "QUICK=1"))
    whole = [parsed(words) for words in commands("results")]
    assert run.out == score.folder == report.folder and score.out == report.second
    assert score.judge.detector == whole[1].judge.detector == "reader"
    for options in (report, whole[2]):
        assert options.second and options.reference == "scenes" and "control" in options.also
    assert run.judge.clip == whole[0].judge.clip


@pytest.mark.parametrize("suite", ["lmd", "sr2d", "geneval=evaluation_metadata.jsonl"])
def test_the_results_of_any_model_are_judged_twice(suite: str) -> None:
    words = ("MODEL=some/model", f"SUITE={suite}", "METHODS=mine=folder")
    run, score, report = map(parsed, commands("results-sd", *words))
    flat = to_flat(run)
    assert (flat["pretrained_model_name_or_path"], flat["suite"], flat["per_prompt"]) == ("some/model", suite, 4)
    assert list(flat["methods"]) == ["base", "mine=folder"]
    assert run.out == score.folder == report.folder and score.out == report.second
    assert bool(run.judge.colours) == bool(score.judge.colours) == suite.startswith("geneval")
    few, *_, distance = map(parsed, commands("results-sd", "MODEL=m", "LIMIT=20", "REFERENCE=photos"))
    assert (to_flat(few)["prompts"], to_flat(few)["suite"]) == (20, "lmd")
    assert few.out != run.out, "another model or other prompts cannot share a folder"
    assert distance.reference == "photos" and report.reference is None and report.encoder == run.judge.clip


def test_a_single_row_is_drawn_with_the_base(tmp_path: Path) -> None:
    run, _, report = map(parsed, commands("results", "ROWS=best8", f"TABLE={tmp_path}"))
    assert list(run.methods) == ["base", "best8"] and report.also == ()
    (tmp_path / "dpt.jsonl").touch()
    assert parsed([*commands("results", "ROWS=best8", f"TABLE={tmp_path}")][2]).also == ("dpt",)


def test_a_model_has_to_be_named() -> None:
    command = ["make", "results-sd", "PYTHON=true"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode and re.search("give MODEL", done.stdout)
