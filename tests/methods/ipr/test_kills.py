"""A run of IPR that is killed at any change of the file system goes on to the same result, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpt.keyed_random import KeyedRandom
from dpt.methods.ipr.config import FineTuneConfig, IPRConfig, PromptConfig
from dpt.methods.ipr.rounds import IPRRun
from tests.methods.ipr.painted import config, content, painted, painter, same_weights, tiny_model
from tests.training.children import in_a_child

__all__ = ["painter", "tiny_model"]

pytestmark = pytest.mark.usefixtures("painter")

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.link", "os.rmdir", "os.truncate")


def tiny_run(model: Path) -> IPRConfig:
    train = FineTuneConfig(max_train_steps=3, train_batch_size=2, lora_rank=2, checkpointing_steps=1)
    prompt = PromptConfig("pocket", ("spatial",), prompts=3, held_out=1)
    return replace(config(model), prompt=prompt, train=train)


def is_change(event: str, arguments: tuple[Any, ...], root: Path) -> bool:
    """Whether an audit event changes something under the root: names, or a file that is opened to write."""
    if event == "open":
        writes = isinstance(arguments[1], str) and arguments[1][:1] in ("w", "a", "x")
        return writes and str(arguments[0]).startswith(str(root))
    return event in CHANGES and any(str(argument).startswith(str(root)) for argument in arguments)


def changes_of(options: IPRConfig, out: Path, last: int | None = None) -> tuple[int, int]:
    """Run in a child; kill it at change number `last`. Returns how many changes it made, and how it ended."""
    reader, writer = os.pipe()

    def work() -> None:
        count = 0

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if is_change(event, arguments, out):
                count += 1
                if count == last:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(note)
        IPRRun(options, out).run()
        os.write(writer, str(count).encode())

    child = in_a_child(work)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        written = stream.read()
    return int(written or b"0"), os.waitpid(child, 0)[1]


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    out = tmp_path_factory.mktemp("whole") / "ipr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpt.sampling.draw.draw", painted)
        changes, status = changes_of(tiny_run(tiny_model), out)
    assert status == 0 and changes > 100
    yield out, changes


def assert_killed_runs_end_the_same(
    whole: tuple[Path, int], model: Path, folder: Path, numbers: range, of: int
) -> None:
    """Kill at the moments of these numbers, of so many that are spread over the run."""
    reference, changes = whole
    for number in numbers:
        out, part = folder / f"{number}" / "ipr", changes // of
        moment = 1 + number * part + KeyedRandom("moment to kill at", of, number).randrange(part)
        assert changes_of(tiny_run(model), out, moment)[1] == signal.SIGKILL
        assert changes_of(tiny_run(model), out)[1] == 0, f"the run does not continue after change {moment}"
        assert content(out) == content(reference), f"killed at change {moment}"
        assert same_weights(out, reference), f"killed at change {moment}"
        shutil.rmtree(out)


def test_a_killed_run_ends_with_the_same_files_and_weights(
    whole: tuple[Path, int], tiny_model: Path, tmp_path: Path
) -> None:
    assert_killed_runs_end_the_same(whole, tiny_model, tmp_path, range(1, 2), 3)


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(0, 24, 3))
def test_a_run_killed_at_24_moments_of_all_stages(
    first: int, whole: tuple[Path, int], tiny_model: Path, tmp_path: Path
) -> None:
    assert_killed_runs_end_the_same(whole, tiny_model, tmp_path, range(first, first + 3), 24)
