"""Train on two hosts and compare with one process; cut the link between them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults.commands import STEPS, script, start, words
from tests.faults.machines import ADDRESSES, Hosts, can_create_hosts, two_hosts
from tests.faults.part_processes import AT_MOST, LOST_CONTACT, Results, compare_to
from tests.training import tiny_stage1

PORT = "29555"


def run(folder: Path) -> dict[str, Any]:
    if not can_create_hosts():
        return {"not tried": {"reason": "network namespaces need root and ip", "differences": []}}
    model = tiny_stage1.model(folder / "model")
    results = Results()
    with two_hosts() as hosts:
        for stage in (1, 2):
            alone, root = folder / f"alone-{stage}", folder / f"two-{stage}"
            _end([start([sys.executable, script(stage), *words(stage, model, alone)], folder / "alone.txt")])
            command = [script(stage), *words(stage, model, root, batch=1)]
            codes = _end(_on_both(hosts, command, folder / f"output-{stage}"))
            results[f"stage {stage}, two machines"] = {"exit_codes": codes, **compare_to(root, alone)}
        results["stage 1, the cable pulled"] = _cut(hosts, folder, model)
    return results


def _on_both(hosts: Hosts, command: list[str], output: Path) -> list[subprocess.Popen[bytes]]:
    """The command of docs/train-on-your-data.md on each."""
    output.mkdir(exist_ok=True)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2",
              "--num_processes", "2", "--main_process_ip", ADDRESSES[0], "--main_process_port", PORT,
              "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
    return [
        start(hosts.on(host, [*launch, "--machine_rank", str(host), *command]), output / f"{host}.txt",
              GLOO_SOCKET_IFNAME=hosts.interfaces[host])
        for host in range(2)
    ]  # fmt: skip


def _cut(hosts: Hosts, folder: Path, model: Path) -> dict[str, Any]:
    """No connection is closed, so only the timeout ends it (here 20 s); saved checkpoints must be good."""
    root, output = folder / "cut", folder / "output-cut"
    processes = _on_both(
        hosts, ["--module", "tests.faults.accidents", "stop", "none", "0", "1", *_long(model, root, 1, 100_000)], output
    )
    deadline = time.monotonic() + AT_MOST
    while not (root / "checkpoint-4" / "manifest.json").exists():
        assert time.monotonic() < deadline, (output / "0.txt").read_text()
        time.sleep(0.05)
    hosts.cut()
    began = time.monotonic()
    codes = _end(processes)
    seconds = round(time.monotonic() - began, 1)
    texts = [(output / f"{host}.txt").read_text() for host in range(2)]
    noticed = all(codes) and LOST_CONTACT in texts[0]
    different = [] if noticed else [f"{codes}: {texts[0][-800:]}"]
    reached = len((root / "log.jsonl").read_text().splitlines())
    repeated = start([sys.executable, script(1), *_long(model, root, 2, reached + 2)], folder / "again.txt")
    if _end([repeated]) != [0]:
        different.append((folder / "again.txt").read_text()[-800:])
    return {"exit_codes": codes, "seconds_until_all_had_ended": seconds, "patience_seconds": 20,
            "reported_by": [host for host in range(2) if LOST_CONTACT in texts[host]],
            "differences": different}  # fmt: skip


def _long(model: Path, root: Path, batch: int, steps: int) -> list[str]:
    instead = {"cosine": "constant", str(STEPS): str(steps)}
    return [instead.get(word, word) for word in words(1, model, root, batch)]


def _end(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    try:
        return [process.wait(AT_MOST) for process in processes]
    finally:
        for process in processes:
            process.kill()
