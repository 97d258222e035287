"""`dpt bench report` on many lines. At full size, by hand:

python -m tests.cli.test_bench_report_cost FOLDER 126720
/usr/bin/time -v dpt bench report FOLDER
"""

from __future__ import annotations

import json
import random
import sys
import time
import tracemalloc
from dataclasses import asdict
from itertools import islice, product
from pathlib import Path

import pytest
from PIL import Image

from dpt.claims.judge import claim_text
from dpt.cli.bench.report import ReportOptions, report
from dpt.evaluation.bench.results import ImageResult, JudgedAtom, SeenObject
from dpt.evaluation.suites import sr2d

PER_PROMPT = 4
METHODS = ("base", "dpt")


def write_results(folder: Path, n: int) -> Path:
    """A folder of SR2D with n random lines of each method, all with one tiny picture."""
    asked = {"suite": "sr2d", "categories": [], "prompts": None, "per_prompt": PER_PROMPT, "seed": 0,
             "num_timesteps": 25, "scheduler": "ddim", "guidance_scale": 7.5}  # fmt: skip
    identity = {"detector": "owlvit", "suite": "sr2d-1"}
    folder.mkdir(parents=True)
    (folder / "bench.json").write_text(json.dumps({"asked": asked, "methods": {name: identity for name in METHODS}}))
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    picture = (folder / "picture.png").read_bytes()
    prompts = list(sr2d.suite().prompts)
    random.Random(0).shuffle(prompts)
    for method in METHODS:
        rng = random.Random(method)
        (folder / method).mkdir()
        with (folder / f"{method}.jsonl").open("w") as lines:
            for number, (prompt, index) in enumerate(islice(product(prompts, range(PER_PROMPT)), n)):
                atoms = tuple(
                    JudgedAtom(
                        "relation" if hasattr(claim, "relation") else "count", claim_text(claim), rng.random() < 0.6
                    )
                    for claim in prompt.facts
                )
                objects = tuple(
                    SeenObject(str(noun.shape), None, None, tuple(rng.random() * 512 for _ in range(4)), rng.random())
                    for noun in prompt.nouns
                    for _ in range(rng.randrange(3))
                )
                passed = all(atom.met for atom in atoms)
                result = ImageResult(
                    method, prompt.id, index, prompt.category, prompt.text, False, number // PER_PROMPT, passed, atoms,
                    objects, 0, clip=round(rng.random(), 5),
                )  # fmt: skip
                lines.write(json.dumps(asdict(result)) + "\n")
                (folder / method / f"{prompt.id}-{index}.png").write_bytes(picture)
    return folder


def test_time_and_memory_grow_slowly_with_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As lists of objects, 6,000 lines took 40 MB and, with a table of resamples for every rate, 30 s."""
    folder = write_results(tmp_path / "bench", 3000)
    started = time.process_time()
    tracemalloc.start()
    try:
        report(ReportOptions(folder, budget_mb=0.1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150e6
    assert time.process_time() - started < 60
    assert "VISOR 4 of 4" in capsys.readouterr().out


if __name__ == "__main__":
    write_results(Path(sys.argv[1]), int(sys.argv[2]))
