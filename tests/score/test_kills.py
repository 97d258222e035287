"""Scoring and selection that are killed at any change of a file end with the same files."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpt.cli.prefer.score import SelectOptions, select
from dpt.score.folder_scores import prompted_pictures, score_pictures
from tests.training.children import in_a_child

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.link", "shutil.copyfile")


class Brightness:
    identity = "brightness"

    def scores(self, images: Any, prompts: Any) -> list[float]:
        return [float(np.mean(image)) for image in images]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten prompts of four images, one much lighter and one much darker than the others."""
    folder = tmp_path_factory.mktemp("images")
    rows = []
    for number in range(40):
        level = (60, 90, 90, 120)[number % 4] + number // 4
        Image.new("RGB", (8, 8), (level, level, level)).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "caption": f"prompt {number // 4}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def score(images: Path, out: Path) -> None:
    score_pictures(prompted_pictures(images), images, Brightness(), out / "scores.jsonl")


def select_from(images: Path, out: Path) -> None:
    """All images are plain, and plain images are blurry: their scores say otherwise here."""
    lines = [json.loads(line) for line in (images / "scores.jsonl").read_text().splitlines()]
    text = "\n".join(json.dumps({**line, "blurry": False}) for line in lines)
    (out / "sharp.jsonl").write_text(text)
    select(SelectOptions(out / "sharp.jsonl", images, out / "selected"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def changes_of(work: Callable[[], None], root: Path, last: int | None = None) -> tuple[int, int]:
    """Run in a child that is killed before change number `last`; how many changes there were, and how it ended."""
    reader, writer = os.pipe()

    def counted() -> None:
        count = 0

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            opened = event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in ("w", "a", "x")
            if (opened or event in CHANGES) and any(str(argument).startswith(str(root)) for argument in arguments):
                count += 1
                if count == last:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(note)
        work()
        os.write(writer, str(count).encode())

    child = in_a_child(counted)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        written = stream.read()
    return int(written or b"0"), os.waitpid(child, 0)[1]


@pytest.mark.parametrize("step", [score, select_from])
def test_a_killed_step_ends_with_the_same_files(
    step: Callable[[Path, Path], None], images: Path, tmp_path: Path
) -> None:
    score(images, images)
    whole = tmp_path / "whole"
    whole.mkdir()
    changes, status = changes_of(lambda: step(images, whole), whole)
    assert status == 0 and changes >= 3
    for moment in sorted({1, 2, changes // 2, changes - 1, changes}):
        out = tmp_path / str(moment)
        out.mkdir()
        assert changes_of(lambda out=out: step(images, out), out, moment)[1] == signal.SIGKILL  # type: ignore[misc]
        assert changes_of(lambda out=out: step(images, out), out)[1] == 0, f"not continued after change {moment}"  # type: ignore[misc]
        assert content(out) == content(whole), f"killed at change {moment} of {changes}"
