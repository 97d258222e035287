"""The course of a run as a picture, from its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpt.errors import UserError
from dpt.plain_json import parse_json
from dpt.records import is_number
from dpt.training.run_folder import LOG

NOT_LOSSES = ("step", "images", "lr", "bad_steps", "seconds", "data_share", "grad_norm", "cardinality_error")


def read_log(root: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The readings of the losses, and the validations."""
    file = root / LOG
    try:
        lines = [parse_json(line) for line in file.read_text().splitlines()]
    except OSError as error:
        raise UserError(f"there is no run in {root}: {file.name} cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{file} is not a log of this project: one of its lines is not JSON") from None
    for line in lines:
        if not (isinstance(line, dict) and is_number(line.get("step")) and _has_numbers(line)):
            raise UserError(f"{file} is not a log of this project: {str(line)[:80]} are no readings of a step")
    if not lines:
        raise UserError(f"{file} is empty: nothing was trained")
    validations = [line for line in lines if "validation" in line]
    return [line for line in lines if "validation" not in line], validations


def _has_numbers(line: Mapping[str, Any]) -> bool:
    shares = line.get("validation", {})
    return isinstance(shares, dict) and all(
        isinstance(value, int | float) for name, value in {**line, **shares}.items() if name != "validation"
    )


def plot_curve(root: Path, file: Path, title: str = "") -> None:
    """Losses on the left, those of held-out pictures with dots; shares of right answers on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    losses, validations = read_log(root)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    names = [name for name in losses[-1] if name not in NOT_LOSSES] if losses else []
    for name in names:
        steps, values = zip(*((one["step"], one[name]) for one in losses if name in one), strict=True)
        left.plot(steps, _smoothed(values), label=name, linewidth=2 if name == "loss" else 1)
    for name in validations[-1]["validation"] if validations else []:
        steps, values = zip(*((one["step"], one["validation"][name]) for one in validations), strict=True)
        if name in names:
            left.plot(steps, values, "o:", markersize=3, linewidth=1, label=f"{name}, held out")
        else:
            right.plot(steps, [100 * share for share in values], marker="o", markersize=3, label=name)
    left.set(title="losses, smoothed", xlabel="step", yscale="log")
    left.legend(fontsize=8, ncols=2)
    right.set(title="validation, %", xlabel="step", ylim=(0, 100))
    right.grid(alpha=0.3)
    if right.lines:
        right.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def _smoothed(values: Sequence[float], over: int = 9) -> list[float]:
    """The mean of each value and those close before it."""
    return [sum(values[max(0, i - over + 1) : i + 1]) / min(over, i + 1) for i in range(len(values))]
