"""Files of IPR: prompts, detection dumps, metadata of relabelled images, records of stages, VISOR's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from dpt.claims.relabel import RelabelConfig, relabel
from dpt.evaluation.suites import lmd, pocket, sr2d
from dpt.evaluation.visor import read_visor, visor_scores
from dpt.methods.ipr.datasets import PUBLISHED_DUMP, counts_of, read_detections
from dpt.methods.ipr.folders import SampledImage, read_metadata
from dpt.methods.ipr.prompts import read_prompts, row_of, suite_of_file
from dpt.methods.ipr.sampling import sampled_images
from tests.fuzz.data_files import HOSTILE_JSON, JSON_MUTATIONS, LINE_MUTATIONS
from tests.fuzz.parser import Parser, Target

KITE = sr2d.prompt_of_row(sr2d.rows()[4012])


def prompts(folder: Path) -> Target:
    file = folder / "prompts.json"
    chosen = [*lmd.suite().prompts[:2], *pocket.pocket_prompts("spatial", 2), KITE]
    rows = [*map(row_of, chosen), {"text": "two red cars and a dog"}]

    def read() -> None:
        read_prompts(file)
        suite_of_file(file)

    return Target(file, [json.dumps(rows).encode()], read)


def entry(index: int) -> dict[str, Any]:
    nouns = [noun.shape for noun in KITE.nouns]
    return {"unique_id": int(KITE.id[5:]), "image_id": f"{KITE.id[5:].lstrip('0')}_{index}", "object_names": nouns,
            "glip_scores": [0.9, 0.5], "glip_boxes": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]],
            "prompt": KITE.text, "detector": "owl", "colours": [None, "red"],
            "unreadable": [{"box": [1.0, 1.0, 2.0, 2.0], "why": "blurred"}]}  # fmt: skip


def dump(folder: Path) -> Target:
    file = folder / "dump.json"

    def read() -> None:
        opened, config = read_detections(file)
        opened.check_detector("owl")
        for index in (0, 1):
            detections, _ = opened.detections(SampledImage(KITE, index, 0))
            for queries in (config, None):
                relabel(KITE, detections, RelabelConfig(), queries)

    assert PUBLISHED_DUMP.threshold == 0
    return Target(file, [json.dumps({e["image_id"]: e for e in (entry(0), entry(1))}).encode()], read)


def metadata(folder: Path) -> Target:
    file = folder / "metadata.jsonl"
    row = {"file_name": "a.png", "prompt": "a cat", "correctness": True, "reason": "number", "weight": 1.0}
    lines = [row, {**row, "file_name": "b.png", "correctness": None}]
    return Target(file, ["".join(json.dumps(line) + "\n" for line in lines).encode()], lambda: read_metadata(file))


def stage(folder: Path) -> Target:
    (folder / "prompts.json").write_text(json.dumps([row_of(KITE)]))
    for index in (0, 1):
        Image.new("RGB", (8, 8)).save(folder / SampledImage(KITE, index, 0).file_name)
    record = {"inputs": {"per_prompt": 2, "round": 0}, "stage": "sample", "images": 2}
    return Target(folder / "stage.json", [json.dumps(record).encode()], lambda: sampled_images(folder))


def counts(folder: Path) -> Target:
    numbers = {"images": 3, "correct": 1, "relabelled": 1, "kept_false": 0, "not_judged": 0}
    record = {"stage": "relabel", "counts": {**numbers, "skipped": {"empty": 1}, "reasons": {"number": 2}}}
    return Target(folder / "stage.json", [json.dumps(record).encode()], lambda: counts_of(folder))


def visor(folder: Path) -> Target:
    file = folder / "results.json"
    sample = {f"1_{n}": {"rel_type": "above", "recall": n % 3, "sra": n % 2, "text": "x"} for n in range(4)}
    return Target(file, [json.dumps(sample).encode()], lambda: visor_scores(read_visor(file)))


PARSERS = (
    Parser("IPR: prompts", prompts, JSON_MUTATIONS, HOSTILE_JSON),
    Parser("IPR: detection dump", dump, JSON_MUTATIONS, HOSTILE_JSON),
    Parser("IPR: metadata", metadata, LINE_MUTATIONS, HOSTILE_JSON),
    Parser("IPR: record of sampling", stage, JSON_MUTATIONS, HOSTILE_JSON),
    Parser("IPR: record of relabelling", counts, JSON_MUTATIONS, HOSTILE_JSON),
    Parser("IPR: results of VISOR", visor, JSON_MUTATIONS, HOSTILE_JSON),
)
