"""Which layer knows what: adapters that read different features, probed over timesteps, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpt.intervals import Share
from dpt.probes.probe import IMAGE, MATCHING, REC, TEXT, TOP_K, ProbeCell, accuracy, categories, timesteps

NAMES = {TEXT: "text side", IMAGE: "image side", REC: "grounding"}


@dataclass(frozen=True)
class ProbeResult:
    """The counted answers of one adapter."""

    name: str
    """Its name in tables: the feature it reads."""
    where: str
    cells: tuple[ProbeCell, ...]
    denoising: tuple[float, float] | None = None
    """Mean square error on the true images: of the tuned model, and of the base model."""

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "cells": [cell.plain() for cell in self.cells]}


def summary(results: Sequence[ProbeResult], timestep: int) -> str:
    """The headline at one timestep: a row for each adapter."""
    columns: list[tuple[str, Callable[[ProbeResult], Share]]] = [
        ("ITM", lambda result: accuracy(result.cells, MATCHING, timestep=timestep)),
        ("ITM, text side", lambda result: accuracy(result.cells, (TEXT,), timestep=timestep)),
        ("ITM, image side", lambda result: accuracy(result.cells, (IMAGE,), timestep=timestep)),
        *((f"REC P@{k}", lambda result, k=k: accuracy(result.cells, (REC,), timestep=timestep, k=k)) for k in TOP_K),
    ]
    return _table("feature", results, columns)


def by_negative(results: Sequence[ProbeResult], timestep: int) -> str:
    """ITM at one timestep by the type of the negative, both sides together."""
    kinds = categories([cell for result in results for cell in result.cells])
    return _table(
        "feature",
        results,
        [(kind, lambda result, kind=kind: accuracy(result.cells, MATCHING, kind, timestep)) for kind in kinds],  # type: ignore[misc]
    )


def by_timestep(results: Sequence[ProbeResult], questions: tuple[str, ...]) -> str:
    times = timesteps([cell for result in results for cell in result.cells])
    return _table(
        "feature \\ t",
        results,
        [(str(t), lambda result, t=t: accuracy(result.cells, questions, timestep=t)) for t in times],  # type: ignore[misc]
    )


def denoising_changes(results: Sequence[ProbeResult]) -> str:
    lines = ["| feature | before | tuned | change |", "|---|---|---|---|"]
    for result in results:
        if result.denoising is not None:
            tuned, before = result.denoising
            lines.append(f"| {result.name} | {before:.4f} | {tuned:.4f} | {100 * (tuned / before - 1):+.1f} % |")
    return "\n".join(lines)


def report(results: Sequence[ProbeResult], timestep: int) -> str:
    """All tables, as Markdown."""
    parts = [
        (f"At timestep {timestep}", summary(results, timestep)),
        (f"Matching by type of negative, at timestep {timestep}", by_negative(results, timestep)),
        ("Matching by timestep, both sides", by_timestep(results, MATCHING)),
        ("Grounding by timestep, P@1", by_timestep(results, (REC,))),
    ]
    if any(result.denoising is not None for result in results):
        parts.append(("Denoising error of held-out pictures under their captions", denoising_changes(results)))
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in parts) + "\n"


def plot(results: Sequence[ProbeResult], timestep: int, file: Path) -> None:
    """By timestep on top; by type of negative, at one timestep, below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axis, questions, title in (
        (axes[0, 0], MATCHING, "image-text matching, one hard negative, %"),
        (axes[0, 1], (REC,), "grounding, P@1 at IoU 0.5, %"),
    ):
        for number, result in enumerate(results):
            times = timesteps(result.cells)
            accuracies = [accuracy(result.cells, questions, timestep=t) for t in times]
            shown = [(t, s.percent) for t, s in zip(times, accuracies, strict=True) if s.total]
            if shown:
                axis.plot(*zip(*shown, strict=True), marker="o", markersize=3, label=result.name, **_line_style(number))
        axis.set(title=title, xlabel="timestep (noise)", ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[0, 0].axhline(50, color="grey", linewidth=0.8, linestyle=":")
    axes[0, 0].legend(fontsize=8, ncols=2)
    for axis, side in ((axes[1, 0], TEXT), (axes[1, 1], IMAGE)):
        _heat(axis, results, side, timestep)
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def _line_style(number: int) -> dict[str, Any]:
    return {"color": f"C{number % 10}", "linestyle": ("-", "--")[number // 10 % 2]}


def _heat(axis: Any, results: Sequence[ProbeResult], question: str, timestep: int) -> None:
    kinds = categories([cell for result in results for cell in result.cells])
    accuracies = [[accuracy(result.cells, (question,), kind, timestep) for kind in kinds] for result in results]
    grid = [[share.percent if share.total else float("nan") for share in row] for row in accuracies]
    axis.imshow(grid, vmin=50, vmax=100, cmap="YlGn", aspect="auto")
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set_yticks(range(len(results)), [result.name for result in results])
    axis.set_title(f"matching by negative, {NAMES[question]}, t = {timestep}, %")
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            axis.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if value > 85 else "black")


def _table(
    corner: str, results: Sequence[ProbeResult], columns: Sequence[tuple[str, Callable[[ProbeResult], Share]]]
) -> str:
    lines = ["| " + " | ".join([corner, *(name for name, _ in columns)]) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += ["| " + " | ".join([result.name, *(str(of(result)) for _, of in columns)]) + " |" for result in results]
    return "\n".join(lines)
