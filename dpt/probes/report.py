"""Which layer knows what: adapters that read different features, probed over timesteps, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpt.intervals import Share
from dpt.probes.probe import FOREMOST, IMAGE, MATCHING, REC, TEXT, ProbeCell, share, sorts, timesteps

NAMES = {TEXT: "text side", IMAGE: "image side", REC: "grounding"}


@dataclass(frozen=True)
class ProbeResult:
    """One adapter, and its counted answers."""

    name: str
    """As it is called in tables: the feature that it reads."""
    where: str
    cells: tuple[ProbeCell, ...]
    denoising: tuple[float, float] | None = None
    """Of a tuned model: its mean square error on the true pictures, and what it was before."""

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def summary(studied: Sequence[ProbeResult], timestep: int) -> str:
    """The headline at one timestep: a row for each adapter."""
    columns: list[tuple[str, Callable[[ProbeResult], Share]]] = [
        ("ITM", lambda one: share(one.cells, MATCHING, timestep=timestep)),
        ("ITM, text side", lambda one: share(one.cells, (TEXT,), timestep=timestep)),
        ("ITM, image side", lambda one: share(one.cells, (IMAGE,), timestep=timestep)),
        *((f"REC P@{k}", lambda one, k=k: share(one.cells, (REC,), timestep=timestep, k=k)) for k in FOREMOST),
    ]
    return _table("feature", studied, columns)


def by_negative(studied: Sequence[ProbeResult], timestep: int) -> str:
    """ITM at one timestep by the type of the negative, both sides together."""
    kinds = sorts([cell for one in studied for cell in one.cells])
    return _table(
        "feature",
        studied,
        [(kind, lambda one, kind=kind: share(one.cells, MATCHING, kind, timestep)) for kind in kinds],  # type: ignore[misc]
    )


def by_timestep(studied: Sequence[ProbeResult], questions: tuple[str, ...]) -> str:
    times = timesteps([cell for one in studied for cell in one.cells])
    return _table(
        "feature \\ t",
        studied,
        [(str(t), lambda one, t=t: share(one.cells, questions, timestep=t)) for t in times],  # type: ignore[misc]
    )


def forgotten(studied: Sequence[ProbeResult]) -> str:
    lines = ["| feature | before | tuned | change |", "|---|---|---|---|"]
    for one in studied:
        if one.denoising is not None:
            tuned, before = one.denoising
            lines.append(f"| {one.name} | {before:.4f} | {tuned:.4f} | {100 * (tuned / before - 1):+.1f} % |")
    return "\n".join(lines)


def report(studied: Sequence[ProbeResult], timestep: int) -> str:
    """All tables, as Markdown."""
    parts = [
        (f"At timestep {timestep}", summary(studied, timestep)),
        (f"Matching by type of negative, at timestep {timestep}", by_negative(studied, timestep)),
        ("Matching by timestep, both sides", by_timestep(studied, MATCHING)),
        ("Grounding by timestep, P@1", by_timestep(studied, (REC,))),
    ]
    if any(one.denoising is not None for one in studied):
        parts.append(("Denoising error of held-out pictures under their captions", forgotten(studied)))
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in parts) + "\n"


def plot(studied: Sequence[ProbeResult], timestep: int, file: Path) -> None:
    """By timestep on top; by type of negative, at one timestep, below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axis, questions, title in (
        (axes[0, 0], MATCHING, "image-text matching, one hard negative, %"),
        (axes[0, 1], (REC,), "grounding, P@1 at IoU 0.5, %"),
    ):
        for number, one in enumerate(studied):
            times = timesteps(one.cells)
            found = [share(one.cells, questions, timestep=t) for t in times]
            shown = [(t, s.percent) for t, s in zip(times, found, strict=True) if s.total]
            if shown:
                axis.plot(*zip(*shown, strict=True), marker="o", markersize=3, label=one.name, **_look(number))
        axis.set(title=title, xlabel="timestep (noise)", ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[0, 0].axhline(50, color="grey", linewidth=0.8, linestyle=":")
    axes[0, 0].legend(fontsize=8, ncols=2)
    for axis, side in ((axes[1, 0], TEXT), (axes[1, 1], IMAGE)):
        _heat(axis, studied, side, timestep)
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def _look(number: int) -> dict[str, Any]:
    return {"color": f"C{number % 10}", "linestyle": ("-", "--")[number // 10 % 2]}


def _heat(axis: Any, studied: Sequence[ProbeResult], question: str, timestep: int) -> None:
    kinds = sorts([cell for one in studied for cell in one.cells])
    shares = [[share(one.cells, (question,), kind, timestep) for kind in kinds] for one in studied]
    grid = [[one.percent if one.total else float("nan") for one in row] for row in shares]
    axis.imshow(grid, vmin=50, vmax=100, cmap="YlGn", aspect="auto")
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set_yticks(range(len(studied)), [one.name for one in studied])
    axis.set_title(f"matching by negative, {NAMES[question]}, t = {timestep}, %")
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            axis.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if value > 85 else "black")


def _table(
    corner: str, studied: Sequence[ProbeResult], columns: Sequence[tuple[str, Callable[[ProbeResult], Share]]]
) -> str:
    lines = ["| " + " | ".join([corner, *(name for name, _ in columns)]) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += ["| " + " | ".join([one.name, *(str(of(one)) for _, of in columns)]) + " |" for one in studied]
    return "\n".join(lines)
