"""What a detector answers becomes a line: cut boxes are counted, nonsense is refused, colours and CLIP go in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpt.claims.boxes import Box
from dpt.claims.detections import Detection, Detections
from dpt.claims.facts import Count, Noun
from dpt.claims.prompt import Prompt
from dpt.errors import UserError
from dpt.evaluation.bench import results as rows
from dpt.evaluation.bench.judging import ImageJudge
from dpt.evaluation.bench.requests import ImageRequest, open_image
from dpt.evaluation.bench.run import StoredImages, run_benchmark
from dpt.evaluation.suites import lmd
from tests.evaluation.bench.making import row


@dataclass
class Telling:
    """A detector that answers the same of every picture, and remembers what it was asked."""

    answer: tuple[Detection, ...]
    classes: tuple[str, ...] | None = None
    asked: Sequence[Sequence[str]] | None = None
    identity: str = "the teller"

    def detect(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]] | None = None) -> list[Detections]:
        self.asked = queries
        return [Detections(self.answer)] * len(images)


PROMPT = Prompt("p", "numeracy", "two cars", (Count(Noun(shape="car"), 2),), closed=False)
PICTURE = np.zeros((40, 64, 3), np.uint8)


def line(*answer: Detection) -> rows.ImageResult:
    (found,) = ImageJudge(Telling(answer), lmd.ASKING)("base", [ImageRequest(PROMPT, 0, "lmd-1")], [PICTURE])
    return found


def car(x0: float, x1: float, score: float = 0.9) -> Detection:
    return Detection("car", Box(x0, 5, x1, 20), score)


def test_boxes_outside_are_cut_and_counted() -> None:
    found = line(car(-9, 10), car(30, 90), car(80, 90))
    assert found.passed and (found.clipped, found.outside) == (2, 1)
    assert [one.box for one in found.objects] == [(0, 5, 10, 20), (30, 5, 64, 20)]


def test_what_does_not_count_is_not_in_the_line() -> None:
    found = line(car(0, 10), car(30, 40, 0.19), Detection("dog", Box(1, 1, 9, 9), 0.9))
    assert not found.passed and len(found.objects) == 1 and [atom.sort for atom in found.atoms] == ["count"]


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match=r"the teller gave a car in base/p-0.png a box or a score that is not a number"):
        line(car(0, 10), car(30, 40, nan))


def test_only_who_must_be_told_is_told() -> None:
    teller = Telling(())
    ImageJudge(teller, lmd.ASKING)("base", [ImageRequest(PROMPT, 0, "lmd-1")], [PICTURE])
    assert teller.asked == [["car"]]
    knower = Telling((car(-9, 10),), classes=("car",))
    (found,) = ImageJudge(knower, lmd.ASKING)("base", [ImageRequest(PROMPT, 0, "lmd-1")], [PICTURE])
    assert knower.asked is None and found.clipped == 0 and found.objects[0].box[0] == -9


def test_nothing_judged_says_so() -> None:
    (found,) = ImageJudge(None, None)("base", [ImageRequest(PROMPT, 0, "prompts-1")], [PICTURE])
    assert found.passed is None and found.atoms == ()


def test_a_line_says_only_what_there_is_to_say(tmp_path: Path) -> None:
    file = tmp_path / "base.jsonl"
    rows.append_results(file, [row("base"), row("base", "b", clip=0.25)])
    plain, scored = (json.loads(text) for text in file.read_text().splitlines())
    assert not {"clip", "clipped", "outside"} & plain.keys() and scored["clip"] == 0.25
    assert rows.read_results(file) == [row("base"), row("base", "b", clip=0.25)]


def asked_of(n: int) -> list[ImageRequest]:
    return [ImageRequest(PROMPT, index, "lmd-1") for index in range(n)]


def pictures(folder: Path, n: int = 20) -> list[ImageRequest]:
    asked = asked_of(n)
    (folder / "base").mkdir(parents=True)
    for one in asked:
        Image.fromarray(PICTURE).save(folder / "base" / one.file)
    return asked


def test_judging_stored_pictures_goes_on_after_a_kill(tmp_path: Path) -> None:
    asked, panel = pictures(tmp_path), ImageJudge(Telling((car(0, 10), car(30, 40))), lmd.ASKING)
    (tmp_path / "whole").mkdir(), (tmp_path / "cut").mkdir()
    source = StoredImages(tmp_path / "base")
    run_benchmark("base", asked, source, panel, tmp_path / "whole")
    whole = (tmp_path / "whole/base.jsonl").read_text()
    assert len(whole.splitlines()) == 20
    for share in (3, 2):
        (tmp_path / "cut/base.jsonl").write_text(whole[: len(whole) // share])
        run_benchmark("base", asked, source, panel, tmp_path / "cut")
        assert (tmp_path / "cut/base.jsonl").read_text() == whole


def test_a_picture_that_is_missing_or_half_written_is_named_not_dropped(tmp_path: Path) -> None:
    asked, panel = pictures(tmp_path), ImageJudge(Telling(()), lmd.ASKING)
    file = tmp_path / "base" / asked[17].file
    whole = file.read_bytes()
    for content, sentence in [(whole[:60], "p-17.png is damaged or only half written"), (b"", "is damaged"),
                              (whole[: len(whole) - 20], "is damaged"), (None, r"p-17.png is missing")]:  # fmt: skip
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            run_benchmark("base", asked, StoredImages(tmp_path / "base"), panel, tmp_path)
        assert len(rows.read_results(tmp_path / "base.jsonl")) == 16  # the pictures before it have their lines
    with pytest.raises(UserError, match="is missing"):
        open_image(file)


SLOWLY = """
import sys, time
from pathlib import Path
from dpt.evaluation.bench.run import Stored, run
from tests.evaluation.bench.test_looking import Telling, Panel, asked_of, car, lmd

class Slow(Telling):
    def detect(self, images, queries=None):
        time.sleep(0.3)
        return super().detect(images, queries)

folder = Path(sys.argv[1])
run("base", asked_of(60), Stored(folder / "base"), Panel(Slow((car(0, 10),)), lmd.ASKING), folder)
"""


def test_a_kill_at_any_moment_changes_no_line(tmp_path: Path) -> None:
    asked = pictures(tmp_path, 60)
    lines = tmp_path / "base.jsonl"
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, str(tmp_path)], cwd=Path(__file__).parents[3])
    while process.poll() is None and not (lines.exists() and lines.stat().st_size):
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 16 <= len(rows.read_results(lines)) < 60
    panel, source = ImageJudge(Telling((car(0, 10),)), lmd.ASKING), StoredImages(tmp_path / "base")
    run_benchmark("base", asked, source, panel, tmp_path)
    (tmp_path / "again").mkdir()
    run_benchmark("base", asked, source, panel, tmp_path / "again")
    assert lines.read_text() == (tmp_path / "again/base.jsonl").read_text()
