from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dpt.errors import UserError
from dpt.training.engine.logging import _smoothed, plot_curve, read_log


def write(root: Path, *lines: dict[str, object]) -> Path:
    (root / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_losses_and_validations_are_separated_and_plotted(tmp_path: Path) -> None:
    steps = [{"step": n, "lr": 1e-4, "i2t": 1 / n, "loss": 2 / n, "seconds": n} for n in range(1, 20)]
    write(tmp_path, *steps, {"step": 19, "validation": {"itm_overall": 0.8, "rec_p1": 0.5}})
    losses, validations = read_log(tmp_path)
    assert (len(losses), len(validations)) == (19, 1)
    plot_curve(tmp_path, tmp_path / "curve.png", "title")
    assert Image.open(tmp_path / "curve.png").width > 500


def test_run_without_validation_plots_the_losses(tmp_path: Path) -> None:
    plot_curve(write(tmp_path, {"step": 1, "loss": 2.0}), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists()


def test_smoothing_uses_only_past_values() -> None:
    assert _smoothed([1.0, 3.0, 5.0], window=2) == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no run in"), ("", "is empty: nothing was trained"), ('{"step": 1}\n{"st', "is not a log")],
)
def test_missing_or_invalid_log_is_a_user_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        plot_curve(tmp_path, tmp_path / "curve.png")
