"""Measure the model of each round on held-out prompts, with the benchmark's noise, judge and intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt.distributed import ONE_PROCESS, Processes
from dpt.evaluation.bench.requests import Shard, all_requests, merge_shards
from dpt.evaluation.bench.run import GeneratedImages, run_benchmark
from dpt.methods.diffusion import DiffusionMethod
from dpt.methods.ipr.config import SampleConfig
from dpt.methods.ipr.datasets import RelabelCounts
from dpt.methods.ipr.folders import replace_file, write_json
from dpt.methods.ipr.prompts import PromptSet
from dpt.methods.ipr.sampling import ModelState, settings_of

if TYPE_CHECKING:
    from dpt.evaluation.bench.judging import ImageJudge

TABLE, NUMBERS, SUMMARY = "table.md", "results.json", "summary.jsonl"

MEASURED = "measured.json"


@dataclass(frozen=True)
class Measurement:
    """The held-out prompts, how they are sampled, and who judges."""

    prompts: PromptSet
    config: SampleConfig
    judge: ImageJudge
    folder: Path
    dtype: str | None = None

    def measure(
        self,
        name: str,
        model: ModelState,
        group: Processes = ONE_PROCESS,
        on_done: Callable[[int], None] = lambda n: None,
    ) -> None:
        """Write FOLDER/NAME.jsonl and the images; an interrupted measurement continues."""
        requests = all_requests(self.prompts.suite, self.config.per_prompt)
        lines = self.folder / f"{name}.jsonl"
        marker = self.folder / f"{name}.{MEASURED}"
        if marker.is_file():
            on_done(len(requests))
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        backbone = model.open(self.dtype)
        method = DiffusionMethod(backbone, settings_of(self.config, backbone))
        group.from_main(lambda: merge_shards(lines, requests))
        source, shard = GeneratedImages(method, self.folder / name), Shard(group.rank, group.count)
        run_benchmark(name, requests, source, self.judge, self.folder, on_done, shard)
        group.gather(lambda: None)

        def finish() -> None:
            merge_shards(lines, requests)
            write_json(marker, {**model.identity(), "detector": self.judge.detector and self.judge.detector.identity})

        group.from_main(finish)


def report(
    folder: Path, names: Sequence[str], suite: str, rounds: Mapping[str, RelabelCounts], record: Mapping[str, Any]
) -> str:
    """Write the tables of all measured rounds, each compared with the first, and return them."""
    from dpt.evaluation.bench.columns import MethodResults
    from dpt.evaluation.bench.tables import compute_results, paired_difference, tables
    from dpt.evaluation.bench.verdicts import summary

    methods = {name: MethodResults.read(folder / f"{name}.jsonl") for name in names}
    results = compute_results(methods, suite)
    first, *others = names
    differences = [paired_difference(methods[name], methods[first]) for name in others]
    text = "\n\n".join(part for part in (tables(results, differences), round_table(rounds)) if part)
    numbers = {
        **record,
        "results": [asdict(result) for result in results],
        "differences": [asdict(difference) for difference in differences],
        "training": {name: asdict(counts) for name, counts in rounds.items()},
    }
    write_json(folder / NUMBERS, numbers)
    replace_file(folder / TABLE, f"{text}\n".encode())
    replace_file(folder / SUMMARY, "".join(summary(methods)).encode())
    return text


def round_table(rounds: Mapping[str, RelabelCounts]) -> str:
    """A Markdown table of the relabelling counts of each round."""
    if not rounds:
        return ""
    lines = ["| training images of | images | correct | relabelled | left out | wrong |", "|---|---|---|---|---|---|"]
    for name, counts in rounds.items():
        wrong = ", ".join(f"{reason} {n}" for reason, n in counts.reasons.items()) or "-"
        left_out = ", ".join(f"{n} ({why})" for why, n in counts.skipped.items()) or "0"
        lines.append(f"| {name} | {counts.images} | {counts.correct} | {counts.relabelled} | {left_out} | {wrong} |")
    return "\n".join(lines)
