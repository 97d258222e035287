"""Kill a training again and again, resume it, and compare it with an uninterrupted one.

Three kinds of moments. `anywhere`: after a random share of the remaining time. `saving`: after a random share of a
save's time, from when the child signals through a pipe that a save began. `event`: at the n-th file operation of a
save, which is reproducible. Whether a kill fell inside a save is read off the signals.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dpt.training.engine.loop import Loop
from tests.faults.compare import accepted, differences, differences_at_the_end, reached
from tests.faults.subjects import SETTINGS, Subject
from tests.training.children import in_a_child

Kind = Literal["anywhere", "saving", "event"]
KINDS: tuple[Kind, ...] = ("anywhere", "saving", "event")
SAVE_BEGAN, SAVE_ENDED = b"(", b")"
TOUCHES_FILES = ("open", "os.", "shutil.")


@dataclass(frozen=True)
class Kill:
    kind: Kind
    share: float
    which: float = 0.0
    """For `saving`: which of the remaining saves, as a share of them."""

    def __str__(self) -> str:
        return f"{self.kind} {self.share:.4f}" + (f" of save {self.which:.4f}" if self.kind == "saving" else "")


@dataclass(frozen=True)
class Duration:
    """Of the uninterrupted run."""

    seconds: float
    save_seconds: float
    events: int
    """File operations in its saves."""


@dataclass
class Tally:
    kills: int = 0
    inside_a_save: int = 0
    came_too_late: int = 0
    runs_finished: int = 0
    most_kills_of_one_run: int = 0
    checkpoints_compared: int = 0
    partial_folders_met: int = 0
    differences: list[str] = field(default_factory=list)


def campaign(
    subject: Subject, folder: Path, kills: int, seed: int, say: Callable[[str], object], kinds: tuple[Kind, ...] = KINDS
) -> Tally:
    """Kill runs one to four times each and finish them, until the number of kills is reached."""
    reference = folder / "reference"
    duration = run_uninterrupted(subject, reference, folder / "duration.json")
    say(f"{subject.name}: seed {seed}; uninterrupted {duration.seconds:.2f} s, a save "
        f"{1000 * duration.save_seconds:.1f} ms, {duration.events} file operations")  # fmt: skip
    rng = random.Random(f"{subject.name} {seed}")
    tally = Tally()
    while tally.kills < kills:
        root = folder / f"run-{tally.runs_finished}"
        kills_of_run = 0
        for _ in range(min(rng.randint(1, 4), kills - tally.kills)):
            kill = Kill(kinds[tally.kills % len(kinds)], rng.random(), rng.random())
            kills_of_run += _kill_and_compare(subject, root, reference, kill, duration, tally, say)
        finish(subject, root)
        tally.runs_finished += 1
        tally.most_kills_of_one_run = max(tally.most_kills_of_one_run, kills_of_run)
        checkpoint_limit = SETTINGS["checkpoints_total_limit"]
        ended = differences_at_the_end(root, reference, subject.steps, checkpoint_limit)
        tally.differences += [f"{root.name}, finished: {difference}" for difference in ended]
        tally.checkpoints_compared += len(accepted(root))
    return tally


def _kill_and_compare(
    subject: Subject,
    root: Path,
    reference: Path,
    kill: Kill,
    duration: Duration,
    tally: Tally,
    say: Callable[[str], object],
) -> bool:
    saves = run_and_kill(subject, root, kill, duration)
    if saves is None:
        tally.came_too_late += 1
        return False
    inside = saves.count(SAVE_BEGAN) > saves.count(SAVE_ENDED)
    tally.kills += 1
    tally.inside_a_save += inside
    good = accepted(root)
    tally.checkpoints_compared += len(good)
    partial = len([*root.glob("checkpoint-*"), *root.glob(".checkpoint-*")]) - len(good)
    tally.partial_folders_met += partial
    different = differences(root, reference)
    tally.differences += [f"{root.name}, kill {tally.kills}: {item}" for item in different]
    say(f"{subject.name} kill {tally.kills:3d}: {root.name}, {kill}; {'inside a save' if inside else 'between saves'}, "
        f"complete: {', '.join(item.name.removeprefix('checkpoint-') for item in good) or 'none'}, partial: {partial}"
        + "".join(f"; DIFFERENT: {item}" for item in different))  # fmt: skip
    return True


def run_and_kill(subject: Subject, root: Path, kill: Kill, duration: Duration) -> bytes | None:
    """The signals of the child's saves until it was killed; None if it finished first."""
    remaining = subject.steps - reached(root)
    share_left = remaining / subject.steps
    reader, writer = os.pipe()
    output = root.with_suffix(".output")

    def work() -> None:
        os.close(reader)
        loop = subject.start(root)
        saving = _signal_saves(loop, writer)
        if kill.kind == "event":
            _die_at_event(int(kill.share * share_left * duration.events), saving)
        loop.run()

    with output.open("w") as out:
        child = in_a_child(work, out.fileno())
    os.close(writer)
    signals = b""
    if kill.kind == "anywhere":
        time.sleep(kill.share * share_left * duration.seconds)
    elif kill.kind == "saving":
        signals = _read_signals(reader, 1 + int(kill.which * remaining))
        _wait_precisely(kill.share * duration.save_seconds)
    if kill.kind != "event":
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    signals += _read_to_end(reader)
    os.close(reader)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, f"{subject.name} failed by itself: {output.read_text()[-2000:]}"
        return None
    return signals


def run_uninterrupted(subject: Subject, root: Path, file: Path) -> Duration:
    def work() -> None:
        loop = subject.start(root, checkpoints_total_limit=None)
        reader, writer = os.pipe()
        saving = _signal_saves(loop, writer)
        count = _count_events(saving)
        began = time.monotonic()
        loop.run()
        seconds = time.monotonic() - began
        file.write_text(json.dumps([seconds, sum(saving.took) / len(saving.took), count.events]))
        os.close(reader)

    assert os.waitpid(in_a_child(work), 0)[1] == 0, f"{subject.name} does not train"
    seconds, save_seconds, events = json.loads(file.read_text())
    return Duration(seconds, save_seconds, events)


def finish(subject: Subject, root: Path) -> None:
    status = os.waitpid(in_a_child(lambda: subject.start(root).run()), 0)[1]
    assert status == 0, f"{subject.name} could not resume in {root}"


class _Saving:
    def __init__(self) -> None:
        self.now = False
        self.took: list[float] = []


class _Count:
    events = 0


def _signal_saves(loop: Loop, writer: int) -> _Saving:
    original_save, saving = loop._save, _Saving()

    def save() -> None:
        os.write(writer, SAVE_BEGAN)
        saving.now, began = True, time.monotonic()
        original_save()
        saving.now = False
        saving.took.append(time.monotonic() - began)
        os.write(writer, SAVE_ENDED)

    loop._save = save  # type: ignore[method-assign]
    return saving


def _count_events(saving: _Saving) -> _Count:
    count = _Count()

    def note(event: str, arguments: Any) -> None:
        if saving.now and event.startswith(TOUCHES_FILES):
            count.events += 1

    sys.addaudithook(note)
    return count


def _die_at_event(last: int, saving: _Saving) -> None:
    count = _Count()

    def note(event: str, arguments: Any) -> None:
        if saving.now and event.startswith(TOUCHES_FILES):
            if count.events == last:
                saving.now = False  # or the kill would be an event too
                os.kill(os.getpid(), signal.SIGKILL)
            count.events += 1

    sys.addaudithook(note)


def _read_signals(reader: int, saves: int) -> bytes:
    """Wait until this many saves have begun, or the child has ended."""
    signals = b""
    while signals.count(SAVE_BEGAN) < saves and (more := os.read(reader, 1)):
        signals += more
    return signals


def _wait_precisely(seconds: float) -> None:
    """A sleep may take a millisecond too long, a large part of a save."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def _read_to_end(reader: int) -> bytes:
    return b"".join(iter(lambda: os.read(reader, 4096), b""))
