"""Memory and work of `dpt bench report`. At full size:

python -m tests.cli.test_bench_report_cost FOLDER 126720
/usr/bin/time -v dpt bench report FOLDER
"""

from __future__ import annotations

import json
import random
import sys
import tracemalloc
from dataclasses import asdict
from functools import lru_cache
from itertools import islice, product
from pathlib import Path

import pytest
from PIL import Image

from dpt import intervals
from dpt.claims.judge import claim_text
from dpt.cli.bench.report import ReportOptions, report
from dpt.evaluation.bench.columns import MethodResults
from dpt.evaluation.bench.results import DetectedObject, ImageResult, JudgedAtom
from dpt.evaluation.suites import sr2d

PER_PROMPT = 4
METHODS = ("base", "dpt")


def write_results(folder: Path, n: int) -> Path:
    """Write a benchmark of SR2D with n random results per method, all with the same tiny picture."""
    options = {"suite": "sr2d", "categories": [], "prompts": None, "per_prompt": PER_PROMPT, "seed": 0,
             "num_timesteps": 25, "scheduler": "ddim", "guidance_scale": 7.5}  # fmt: skip
    identity = {"detector": "owlvit", "suite": "sr2d-1"}
    folder.mkdir(parents=True)
    (folder / "bench.json").write_text(json.dumps({"asked": options, "methods": {name: identity for name in METHODS}}))
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
                    DetectedObject(
                        str(noun.shape), None, None, tuple(rng.random() * 512 for _ in range(4)), rng.random()
                    )
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


def test_results_take_less_than_1_kb_per_line(tmp_path: Path) -> None:
    """As objects, 126,720 lines need 1.5 GB."""
    file = write_results(tmp_path / "bench", 1000) / "base.jsonl"
    tracemalloc.start()
    try:
        results = MethodResults.read(file)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(results) == 1000 and held < 1000 * 1000


def test_rates_of_a_report_share_their_bootstrap_resamples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing them takes nearly all the time of a report."""
    folder = write_results(tmp_path / "bench", 1200)
    drawn: list[tuple[int, ...]] = []
    draw = intervals._resample_counts.__wrapped__
    monkeypatch.setattr(
        intervals, "_resample_counts", lru_cache(lambda sizes, *rest: drawn.append(sizes) or draw(sizes, *rest))
    )
    report(ReportOptions(folder, budget_mb=0.1))
    assert "VISOR 4 of 4" in capsys.readouterr().out
    assert intervals._resample_counts.cache_info().hits > 5 * len(drawn) > 0
    assert len(drawn) == len(set(drawn))


if __name__ == "__main__":
    write_results(Path(sys.argv[1]), int(sys.argv[2]))
