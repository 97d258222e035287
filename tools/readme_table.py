"""Write README's table of results from docs/results/table/results.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dpt.intervals import Estimate
from dpt.records import from_plain

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = ROOT / "docs/results/table/results.json", ROOT / "README.md"
BEGIN, END = "<!-- from docs/results/table by tools/readme_table.py -->", "<!-- end of the table -->"
LABELS = {
    "base": "the model itself",
    "control": "control: a plain LoRA of 1,600 steps",
    "control-long": "control: a plain LoRA in DPT's training time, 8,000 steps",
    "dpt": "**DPT**, 1,600 steps",
    "corrected": "**DPT with self-correction**",
    "best4": "DPT, best of four by its adapter",
    "best8": "DPT, best of eight",
    "ipr1": "IPR, one round",
    "ipr": "IPR, two rounds",
    "ipr-dpt": "IPR and DPT, their LoRAs added",
    "hps": "HPS",
    "distilled": "DPT, then its own best of four learnt",
    "base-sld": "SLD after the model; its detector is the judge",
    "corrected-sld": "SLD after DPT with self-correction; the same",
}


def table(measured: dict[str, Any]) -> str:
    lines = ["| method | right, five categories | spatial | passes per image |", "|---|---|---|---|"]
    for result in measured["results"]:
        rates, cost = result["rates"], result.get("cost") or {}
        passes = f"{cost['passes']:.0f}" if cost else ""
        label = LABELS.get(result["method"], result["method"])
        lines.append(f"| {label} | {percent(rates['all'])} | {percent(rates['spatial'])} | {passes} |")
    return "\n".join(lines)


def percent(estimate: dict[str, float]) -> str:
    return from_plain(Estimate, estimate, str(RESULTS)).percent


def updated(readme: str, measured: dict[str, Any]) -> str:
    block = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not block.search(readme):
        raise SystemExit(f"{README} has no place for the table: the lines {BEGIN} and {END}")
    return block.sub(lambda _: f"{BEGIN}\n{table(measured)}\n{END}", readme)


if __name__ == "__main__":
    README.write_text(updated(README.read_text("utf-8"), json.loads(RESULTS.read_text("utf-8"))), "utf-8")
