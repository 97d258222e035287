"""Every flag of the training commands does what it says, or is refused, or is warned of."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import LoggerType

from dpt.cli.common.console import parse_options
from dpt.cli.train import stages as train_stage1
from dpt.cli.train import stages as train_stage2
from dpt.cli.train.options import TrainOptions
from tests.cli.options import making
from tests.cli.options.checks import Effect, Proven, Refused, Table, Warned, assert_effect, fields_of, with_field
from tests.cli.options.rehearsal import Rehearsal, rehearse
from tests.cli.options.stages_table import STAGE_1, STAGE_2

SMALL = (
    "--unet_feature up0 --hidden_dim 16 --nheads 2 --dim_feedforward 32 --num_queries_matching 3 --num_queries_rec 5 "
    "--train_batch_size 2 --val_batch_size 4 --validation_scenes 1 --logging_steps 1 --max_train_steps 2 "
    "--report_to none --pretrained_model_name_or_path {model}"
)


@dataclass(frozen=True)
class Command:
    name: str
    kind: type[TrainOptions]
    main: Callable[[list[str]], int]
    builder: str
    table: Table
    words: str


COMMANDS = {
    "train_stage1.py": Command("train_stage1.py", train_stage1.Stage1Options, train_stage1.main_stage1,
                               "dpt.cli.train.tasks:stage1", STAGE_1, SMALL),
    "train_stage2.py": Command("train_stage2.py", train_stage2.Stage2Options, train_stage2.main_stage2,
                               "dpt.cli.train.tasks:stage2", STAGE_2,
                               f"{SMALL} --lora_rank 2 --lora_blocks bottom1"),
}  # fmt: skip
FLAGS = [(command, flag) for command in COMMANDS for flag in COMMANDS[command].table]


@dataclass
class Bench:
    """Runs of one command, each made once."""

    command: Command
    places: dict[str, str]
    runs: Path
    _parsed: dict[str, Any] = field(default_factory=dict)
    _seen: dict[tuple[str, bool, int], Rehearsal] = field(default_factory=dict)

    def words(self, more: str = "") -> list[str]:
        return shlex.split(f"{self.command.words} --output_dir {self.runs} {more}".format(**self.places))

    def options(self, more: str = "") -> Any:
        if more not in self._parsed:
            self._parsed[more] = parse_options(self.command.kind, self.words(more), self.command.name)
        return self._parsed[more]

    def told(self) -> dict[str, Any]:
        """What the parser makes of the words of all claimed effects, each under its flag."""
        effects = [f"--{flag} {check.words}" for flag, check in self.command.table.items() if isinstance(check, Effect)]
        return fields_of(self.options(" ".join(effects)))

    def look(self, options: Any, whole: bool, number: int) -> Rehearsal:
        key = (repr(options), whole, number)
        if key not in self._seen:
            # A folder for each run, unless one was asked for.
            own = options.output.output_dir == self.runs
            where = self.runs / str(len(self._seen)) if own else options.output.output_dir
            at = replace(options, output=replace(options.output, output_dir=where))
            self._seen[key] = rehearse(at, self.command.builder, whole)
        return self._seen[key]

    def close(self) -> None:
        for one in self._seen.values():
            one.close()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return making.make_places(tmp_path_factory.mktemp("places"))


@pytest.fixture(scope="module")
def benches(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Bench]]:
    found = {}
    for name, command in COMMANDS.items():
        runs = tmp_path_factory.mktemp("runs")
        half = runs / "half"
        found[name] = Bench(command, {**places, "half": str(half / "checkpoint-1")}, runs)
        begun = with_field(with_field(found[name].options(), "output_dir", half), "checkpointing_steps", 1)
        rehearse(begun, command.builder, whole=True)
    yield found
    for bench in found.values():
        bench.close()


@pytest.fixture(scope="module", autouse=True)
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.tracking._available_trackers", [LoggerType.TENSORBOARD])
        patch.syspath_prepend(making.stand_in_tracker(tmp_path_factory.mktemp("tracker")))
        yield


@pytest.mark.parametrize(("name", "flag"), FLAGS)
def test_it_does_what_is_claimed(
    name: str, flag: str, benches: dict[str, Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    bench = benches[name]
    check = bench.command.table[flag]
    if isinstance(check, Effect):
        assert_effect(flag, check, bench.options(check.beside), bench.told(), bench.look)
    elif isinstance(check, Proven):
        check.function()
    else:
        said, code = said_by(partial(bench.command.main), bench.words(f"--{flag} {check.words}"), capsys, check)
        assert check.sentence in said
        assert code == (2 if isinstance(check, Refused) else 75)


def said_by(
    main: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str], check: Refused | Warned
) -> tuple[str, int]:
    from unittest.mock import patch

    from dpt.training.engine.loop import Loop, Outcome

    capsys.readouterr()
    try:
        with patch.object(Loop, "run", lambda *_: Outcome(0, finished=False)):
            code = main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    return capsys.readouterr().err, code
