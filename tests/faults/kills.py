"""A training that is killed without warning, again and again, and gone on with, beside the same one left in peace.

A moment to be killed at is of one of three kinds. `anywhere`: after a random share of the time that is left to go.
`saving`: a save has begun, which the child says through a pipe, and a random share of a save's time is over.
`event`: at the n-th time that a save opens, names or removes a file; the only kind that falls on the very same place
each time. Whether a kill fell inside a save is not concluded from that, but read off what the child had said.
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
from tests.faults.comparing import accepted, differences, differences_at_the_end, reached
from tests.faults.subjects import SETTINGS, Subject
from tests.training.children import in_a_child

Kind = Literal["anywhere", "saving", "event"]
KINDS: tuple[Kind, ...] = ("anywhere", "saving", "event")
BEGUN, ENDED = b"(", b")"
TOUCHES_FILES = ("open", "os.", "shutil.")


@dataclass(frozen=True)
class Kill:
    kind: Kind
    share: float
    which: float = 0.0
    """Of the kind `saving`: of which of the child's saves, as a share of those that are left."""

    def __str__(self) -> str:
        return f"{self.kind} {self.share:.4f}" + (f" of save {self.which:.4f}" if self.kind == "saving" else "")


@dataclass(frozen=True)
class Pace:
    """What the uninterrupted run took."""

    seconds: float
    of_a_save: float
    events: int
    """How often its saves touched files."""


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
    """So many kills, spread over runs that are killed one to four times each and then finished."""
    reference = folder / "reference"
    pace = uninterrupted(subject, reference, folder / "pace.json")
    say(f"{subject.name}: seed {seed}; left in peace {pace.seconds:.2f} s, a save {1000 * pace.of_a_save:.1f} ms, "
        f"{pace.events} touches of files")  # fmt: skip
    rng = random.Random(f"{subject.name} {seed}")
    tally = Tally()
    while tally.kills < kills:
        root = folder / f"run-{tally.runs_finished}"
        of_this_run = 0
        for _ in range(min(rng.randint(1, 4), kills - tally.kills)):
            kill = Kill(kinds[tally.kills % len(kinds)], rng.random(), rng.random())
            of_this_run += _strike_and_look(subject, root, reference, kill, pace, tally, say)
        finish(subject, root)
        tally.runs_finished += 1
        tally.most_kills_of_one_run = max(tally.most_kills_of_one_run, of_this_run)
        kept = SETTINGS["checkpoints_total_limit"]
        ended = differences_at_the_end(root, reference, subject.steps, kept)
        tally.differences += [f"{root.name}, finished: {one}" for one in ended]
        tally.checkpoints_compared += len(accepted(root))
    return tally


def _strike_and_look(
    subject: Subject, root: Path, reference: Path, kill: Kill, pace: Pace, tally: Tally, say: Callable[[str], object]
) -> bool:
    saves = strike(subject, root, kill, pace)
    if saves is None:
        tally.came_too_late += 1
        return False
    inside = saves.count(BEGUN) > saves.count(ENDED)
    tally.kills += 1
    tally.inside_a_save += inside
    good = accepted(root)
    tally.checkpoints_compared += len(good)
    partial = len([*root.glob("checkpoint-*"), *root.glob(".checkpoint-*")]) - len(good)
    tally.partial_folders_met += partial
    found = differences(root, reference)
    tally.differences += [f"{root.name}, kill {tally.kills}: {one}" for one in found]
    say(f"{subject.name} kill {tally.kills:3d}: {root.name}, {kill}; {'inside a save' if inside else 'between saves'}, "
        f"complete: {', '.join(one.name.removeprefix('checkpoint-') for one in good) or 'none'}, partial: {partial}"
        + "".join(f"; DIFFERENT: {one}" for one in found))  # fmt: skip
    return True


def strike(subject: Subject, root: Path, kill: Kill, pace: Pace) -> bytes | None:
    """What the child had said of its saves when it was dead; nothing if it came to its end before."""
    left = subject.steps - reached(root)
    share_left = left / subject.steps
    ear, mouth = os.pipe()
    said = root.with_suffix(".said")

    def work() -> None:
        os.close(ear)
        one = subject.begin(root)
        saving = _tell_of_saves(one, mouth)
        if kill.kind == "event":
            _die_at_event(int(kill.share * share_left * pace.events), saving)
        one.run()

    with said.open("w") as out:
        child = in_a_child(work, out.fileno())
    os.close(mouth)
    heard = b""
    if kill.kind == "anywhere":
        time.sleep(kill.share * share_left * pace.seconds)
    elif kill.kind == "saving":
        heard = _listen(ear, 1 + int(kill.which * left))
        _wait_precisely(kill.share * pace.of_a_save)
    if kill.kind != "event":
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    heard += _rest_of(ear)
    os.close(ear)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, f"{subject.name} failed by itself: {said.read_text()[-2000:]}"
        return None
    return heard


def uninterrupted(subject: Subject, root: Path, file: Path) -> Pace:
    def work() -> None:
        one = subject.begin(root, checkpoints_total_limit=None)
        reader, mouth = os.pipe()
        saving = _tell_of_saves(one, mouth)
        count = _count_events(saving)
        began = time.monotonic()
        one.run()
        seconds = time.monotonic() - began
        file.write_text(json.dumps([seconds, sum(saving.took) / len(saving.took), count.events]))
        os.close(reader)

    assert os.waitpid(in_a_child(work), 0)[1] == 0, f"{subject.name} does not train"
    seconds, of_a_save, events = json.loads(file.read_text())
    return Pace(seconds, of_a_save, events)


def finish(subject: Subject, root: Path) -> None:
    status = os.waitpid(in_a_child(lambda: subject.begin(root).run()), 0)[1]
    assert status == 0, f"{subject.name} could not go on in {root}"


class _Saving:
    def __init__(self) -> None:
        self.now = False
        self.took: list[float] = []


class _Count:
    events = 0


def _tell_of_saves(one: Loop, mouth: int) -> _Saving:
    ordinary, saving = one._save, _Saving()

    def save() -> None:
        os.write(mouth, BEGUN)
        saving.now, began = True, time.monotonic()
        ordinary()
        saving.now = False
        saving.took.append(time.monotonic() - began)
        os.write(mouth, ENDED)

    one._save = save  # type: ignore[method-assign]
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
                saving.now = False  # or the killing would be an event too
                os.kill(os.getpid(), signal.SIGKILL)
            count.events += 1

    sys.addaudithook(note)


def _listen(ear: int, saves: int) -> bytes:
    """Until so many saves have begun, or the child is gone."""
    heard = b""
    while heard.count(BEGUN) < saves and (more := os.read(ear, 1)):
        heard += more
    return heard


def _wait_precisely(seconds: float) -> None:
    """A sleep may take a millisecond too long, which is much of a save."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def _rest_of(ear: int) -> bytes:
    return b"".join(iter(lambda: os.read(ear, 4096), b""))
