"""Let one of several processes fail, resume, and compare with one uninterrupted process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults.commands import STEPS, script, start, start_by_hand, torchrun, words
from tests.faults.compare import log
from tests.training import tiny_stage1
from tests.training.two_processes import apart

TOLERANCE = 1e-5
LOST_CONTACT = "lost contact with another process of this run"
AT_MOST = 600.0
"""Seconds after which anything counts as hung."""


class Results(dict[str, Any]):
    """Prints each result when it is set."""

    def __setitem__(self, what: str, facts: Any) -> None:
        print(f"{what}: {json.dumps(facts)}", flush=True)
        super().__setitem__(what, facts)


def run(folder: Path) -> dict[str, Any]:
    model = tiny_stage1.model(folder / "model")
    results = Results()
    alone = folder / "alone-1"
    _finish([sys.executable, script(1), *words(1, model, alone)], folder / "alone.txt")
    results["stage 1, a rank that never answers again"] = _silent(folder, model, alone)
    results["stage 1, the launcher killed"] = _without_launcher(folder, model, alone)
    results["stage 1, machines that share no file system"] = _not_shared(folder, model, alone)
    for stage in (1, 2):
        alone = folder / f"alone-{stage}"
        if stage == 2:
            _finish([sys.executable, script(stage), *words(stage, model, alone)], folder / "alone.txt")
        for rank in (0, 1):
            results[f"stage {stage}, rank {rank} of 2 killed"] = _killed(folder, model, alone, stage, rank)
        results[f"stage {stage}, killed as 1 process, resumed as 2"] = _split_anew(folder, model, alone, stage)
    return results


def compare_to(root: Path, alone: Path) -> dict[str, Any]:
    """Largest differences from the run of one process, which may only be rounding."""
    own_log, reference_log = log(root), log(alone)
    losses = [
        abs(a[name] - b[name]) / max(1.0, abs(b[name]))
        for a, b in zip(own_log, reference_log, strict=False)
        for name in b
        if name != "validation"
    ]
    weights, name = apart(root, alone, STEPS)
    step_differences = (
        []
        if [record["step"] for record in own_log] == [record["step"] for record in reference_log]
        else ["the log has other steps"]
    )
    if weights > TOLERANCE:
        step_differences.append(f"weights are {weights:.2e} apart ({name})")
    if max(losses) > TOLERANCE:
        step_differences.append(f"losses are {max(losses):.2e} apart")
    return {
        "weights_apart": float(f"{weights:.2e}"),
        "losses_apart": float(f"{max(losses):.2e}"),
        "differences": step_differences,
    }


def _killed(folder: Path, model: Path, alone: Path, stage: int, rank: int) -> dict[str, Any]:
    root, output = folder / f"killed-{stage}-{rank}", folder / f"killed-{stage}-{rank}.txt"
    command = words(stage, model, root, batch=1)
    dying = ["-m", "tests.faults.accidents", "kill", str(rank), "5", str(stage), *command]
    process = start([*torchrun(), *dying], output)
    seconds = _seconds_after_last_step(process, root)
    text = output.read_text()
    _finish([*torchrun(), script(stage), *command], folder / "resumed.txt")
    comparison = compare_to(root, alone)
    if process.returncode == 0:
        comparison["differences"].append("the launcher reported success")
    if "SIGKILL" not in text:
        comparison["differences"].append("no message said what happened")
    return {**comparison, "seconds_until_all_had_ended": seconds, "survivor_reported": LOST_CONTACT in text}


def _seconds_after_last_step(process: subprocess.Popen[bytes], root: Path) -> float:
    """From the last line of the log before the accident to the end of all."""
    _wait(process)
    return round(time.time() - (root / "log.jsonl").stat().st_mtime, 1)


def _split_anew(folder: Path, model: Path, alone: Path, stage: int) -> dict[str, Any]:
    """One process, killed; then two, one killed; then one with two micro-batches."""
    root, output = folder / f"anew-{stage}", folder / "anew.txt"
    first = ["-m", "tests.faults.accidents", "kill", "0", "3", str(stage), *words(stage, model, root)]
    code = _wait(start([sys.executable, *first], output))
    assert code == -signal.SIGKILL, output.read_text()
    repeated = ["-m", "tests.faults.accidents", "kill", "1", "7", str(stage), *words(stage, model, root, batch=1)]
    _wait(start([*torchrun(), *repeated], output))
    assert (root / "checkpoint-6").is_dir(), output.read_text()
    last = [*words(stage, model, root, batch=1), "--gradient_accumulation_steps", "2"]
    _finish([sys.executable, script(stage), *last], output)
    return compare_to(root, alone)


def _silent(folder: Path, model: Path, alone: Path) -> dict[str, Any]:
    """Stopped, not killed: no connection is closed, so only the timeout ends it (here 20 s)."""
    root = folder / "silent"
    command = ["-m", "tests.faults.accidents", "stop", "1", "5", "1", *words(1, model, root, batch=1)]
    waiting, silent = start_by_hand(command, 2, folder / "silent-output")
    seconds = _seconds_after_last_step(waiting, root)
    silent.kill()
    silent.wait()
    _finish([sys.executable, script(1), *words(1, model, root)], folder / "resumed.txt")
    comparison = compare_to(root, alone)
    output = (folder / "silent-output" / "output-0.txt").read_text()
    if waiting.returncode != 75 or LOST_CONTACT not in output or "Traceback" in output:
        comparison["differences"].append(f"it ended with {waiting.returncode} and printed {output[-500:]}")
    return {**comparison, "patience_seconds": 20, "seconds_until_it_gave_up": seconds}


def _without_launcher(folder: Path, model: Path, alone: Path) -> dict[str, Any]:
    """Its processes may live on: meanwhile the same command must be refused."""
    root, output = folder / "orphans", folder / "orphans.txt"
    command = words(1, model, root, batch=1)
    slow = ["-m", "tests.faults.accidents", "slow", "0", "5", "1", *command]
    launcher = start([*torchrun(), *slow], output)
    _until(lambda: (root / "checkpoint-4" / "manifest.json").exists())
    orphans = _children(launcher.pid)
    launcher.kill()
    launcher.wait()
    lived = any(Path(f"/proc/{process_id}").exists() for process_id in orphans)
    refused = start([sys.executable, script(1), *words(1, model, root)], folder / "refused.txt")
    code, text = _wait(refused), (folder / "refused.txt").read_text()
    _until(lambda: not any(_alive(process_id) for process_id in orphans))
    _finish([sys.executable, script(1), *words(1, model, root)], folder / "resumed.txt")
    comparison = compare_to(root, alone)
    if lived and (code != 2 or "another process is training in" not in text):
        comparison["differences"].append(f"the second run ended with {code} and printed {text[-500:]}")
    return {**comparison, "processes_lived_on": lived, "second_run_refused": code == 2}


def _not_shared(folder: Path, model: Path, alone: Path) -> dict[str, Any]:
    """One machine resumes from a checkpoint that the other does not have."""
    root = folder / "shared"
    dying = ["-m", "tests.faults.accidents", "kill", "0", "5", "1", *words(1, model, root)]
    assert _wait(start([sys.executable, *dying], folder / "shared.txt")) == -signal.SIGKILL
    processes = start_by_hand([script(1), *words(1, model, root, batch=1)], 2, folder / "shared-output",
                              {1: {str(root): str(folder / "elsewhere")}})  # fmt: skip
    codes = [_wait(item) for item in processes]
    output = [(folder / "shared-output" / f"output-{rank}.txt").read_text() for rank in range(2)]
    refused = ["process 0 would continue after step 4 and process 1 after step 0" in item for item in output]
    return {"exit_codes": codes, "differences": [] if codes == [2, 2] and all(refused) else [output[1][-500:]]}


def _finish(command: list[str], output: Path) -> None:
    code = _wait(start(command, output))
    assert code == 0, f"{command} ended with {code}: {output.read_text()[-2000:]}"


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(AT_MOST)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def _until(done: Any) -> None:
    deadline = time.monotonic() + AT_MOST
    while not done():
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.1)


def _children(process: int) -> list[int]:
    return [int(process_id) for process_id in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _alive(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    return status.exists() and not re.search(r"^State:\s+Z", status.read_text(), re.M)
