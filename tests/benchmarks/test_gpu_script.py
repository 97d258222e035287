"""`benchmarks/gpu.sh` runs from end to end on a CPU, so that it works on the day there is a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_every_part_of_the_gpu_script_gives_a_result(tmp_path: Path) -> None:
    command = ["bash", "benchmarks/gpu.sh", "--tiny", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    results = {entry["name"]: entry for entry in json.loads((tmp_path / "summary.json").read_text())["results"]}
    assert {entry["status"] for entry in results.values()} == {"done"}
    assert {entry["part"] for entry in results.values()} == {"tests", "sd21", "sdxl", "pocket"}
    counts = results["tests"]["result"]
    assert sum(counts.values()) >= 15 and not counts.get("failed")
    for part in ("sd21", "sdxl"):
        step = results[f"{part}-stage2"]["result"]
        assert step["ours against plain"] > 0 and step["TFLOP a step"] > 0 and step["MFU"] is None
        kept = [
            results[f"{part}-stage2{end}"]["result"]["bytes kept for the backward pass"]
            for end in ("", "-checkpointing")
        ]
        assert 0 < kept[1] < kept[0] and sum(step["estimated bytes"].values()) > 0
        operations = results[f"{part}-correction"]["result"]["operations against plain"]
        assert 1 < operations["default"] < operations["fused"] < operations["published"]
    assert results["pocket"]["result"]["steps"] == 1


def test_skipped_parts_and_a_missing_gpu_are_reported(tmp_path: Path) -> None:
    import gpu

    parts = ("tests", "sd21", "sdxl", "pocket")
    assert gpu.main(gpu.Options(tmp_path, parts, tiny=True)) == 0
    entries = json.loads((tmp_path / "summary.json").read_text())["results"]
    assert len(entries) == 10 and {entry["status"] for entry in entries} == {"skipped"}
    fails = gpu.Measurement("pocket", "broken", lambda: {}["nothing"])
    entry = gpu.run(fails, gpu.Options(tmp_path), 0.0)
    assert entry["status"] == "failed" and entry["reason"] == "KeyError: 'nothing'"
    late = gpu.run(fails, gpu.Options(tmp_path, minutes=1), 61.0)
    assert late["reason"] == "1 minutes are over"
