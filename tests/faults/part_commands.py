"""Kill the real commands from outside and compare with uninterrupted ones, bit for bit."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults.commands import STEPS, script, start, words
from tests.faults.compare import differences, differing_files, log
from tests.training import tiny_stage1

DROPOUT = ["--dropout", "0.1"]
"""Its masks must be restored too."""
KILLS = 6


def run(folder: Path, seed: int) -> dict[str, Any]:
    model = tiny_stage1.model(folder / "model")
    return {f"stage {stage}": _killed(folder / str(stage), model, stage, seed) for stage in (1, 2)}


def _killed(folder: Path, model: Path, stage: int, seed: int) -> dict[str, Any]:
    rng = random.Random(f"commands {stage} {seed}")
    folder.mkdir()
    reference, root = folder / "reference", folder / "run"
    shared = ["--checkpointing_steps", "1"]
    assert _command(stage, model, reference, shared, folder).wait() == 0, _output_of(folder)
    different, inside, kills = [], 0, 0
    for nth in range(KILLS):
        process = _command(stage, model, root, shared, folder)
        count, share = rng.randint(1, 3), rng.random()
        if nth % 2:
            _wait_for_saves(process, root, count)
        else:
            _wait_for_lines(process, root, count)
            time.sleep(0.3 * share)
        process.kill()
        if process.wait() == 0:
            break
        kills += 1
        inside += bool(list(root.glob(".checkpoint-*")))
        different += differences(root, reference)
        print(f"train_stage{stage}.py kill {kills}: {'in save' if nth % 2 else 'after line'} {count}, {share:.3f}; "
              f"{len(log(root))} lines, {len(list(root.glob('checkpoint-*')))} checkpoints", flush=True)  # fmt: skip
    assert _command(stage, model, root, shared, folder).wait() == 0, _output_of(folder)
    different += differences(root, reference)
    different += [] if log(root) == log(reference) else ["the log"]
    for result in ("adapter", "lora") if stage == 2 else ("adapter",):
        different += [f"{result}/{name}" for name in differing_files(root / result, reference / result)]
    different += [] if (root / f"checkpoint-{STEPS}").exists() else ["it did not finish"]
    return {"kills": kills, "inside_a_save": inside, "differences": different}


def _command(stage: int, model: Path, root: Path, more: list[str], folder: Path) -> subprocess.Popen[bytes]:
    command = [*words(stage, model, root), *DROPOUT, *more]
    flags = dict(zip(command[::2], command[1::2], strict=True))  # a flag that is given twice counts as it was last
    flat = [word for pair in flags.items() for word in pair]
    return start([sys.executable, script(stage), *flat], folder / "output.txt")


def _output_of(folder: Path) -> str:
    return (folder / "output.txt").read_text()[-2000:]


def _wait_for_lines(process: subprocess.Popen[bytes], root: Path, more: int) -> None:
    before = len(list(root.glob("checkpoint-*")))
    while process.poll() is None and len(list(root.glob("checkpoint-*"))) < before + more:
        time.sleep(0.01)


def _wait_for_saves(process: subprocess.Popen[bytes], root: Path, saves: int) -> None:
    """Wait until the temporary folders of this many saves were seen."""
    ending, folders = f"-{process.pid}.tmp", set[str]()
    while process.poll() is None and len(folders) < saves:
        folders |= {path.name for path in root.glob(".checkpoint-*") if path.name.endswith(ending)}
