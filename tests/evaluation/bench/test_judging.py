"""From detections to a results line, and judging stored images across kills."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpt.claims.facts import Box, Count, Noun, Prompt
from dpt.claims.judge import Detection, Detections
from dpt.errors import UserError
from dpt.evaluation.bench import results as rows
from dpt.evaluation.bench.results import open_image
from dpt.evaluation.bench.run import ImageJudge, ImageRequest, StoredImages, run_benchmark
from dpt.evaluation.suites import lmd
from tests.evaluation.bench.rows import row
from tests.training.children import end_of_child


@dataclass
class FixedDetector:
    """Returns fixed detections and records its queries."""

    objects: tuple[Detection, ...]
    classes: tuple[str, ...] | None = None
    queries: Sequence[Sequence[str]] | None = None
    identity: str = "the detector"

    def detect(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]] | None = None) -> list[Detections]:
        self.queries = queries
        return [Detections(self.objects)] * len(images)


PROMPT = Prompt("p", "numeracy", "two cars", (Count(Noun(shape="car"), 2),), closed=False)
PICTURE = np.zeros((40, 64, 3), np.uint8)


def judged(*objects: Detection) -> rows.ImageResult:
    (result,) = ImageJudge(FixedDetector(objects), lmd.DETECT)("base", [ImageRequest(PROMPT, 0, "lmd-1")], [PICTURE])
    return result


def car(x0: float, x1: float, score: float = 0.9) -> Detection:
    return Detection("car", Box(x0, 5, x1, 20), score)


def test_boxes_are_clipped_and_counted() -> None:
    result = judged(car(-9, 10), car(30, 90), car(80, 90))
    assert result.passed and (result.clipped, result.outside) == (2, 1)
    assert [detected.box for detected in result.objects] == [(0, 5, 10, 20), (30, 5, 64, 20)]


def test_detections_below_the_threshold_or_of_other_nouns_are_not_recorded() -> None:
    result = judged(car(0, 10), car(30, 40, 0.19), Detection("dog", Box(1, 1, 9, 9), 0.9))
    assert not result.passed and len(result.objects) == 1 and [atom.sort for atom in result.atoms] == ["count"]


def test_a_nan_score_is_an_error() -> None:
    with pytest.raises(
        UserError, match=r"the detector returned a NaN or infinite box or score for 'car' in base/p-0.png"
    ):
        judged(car(0, 10), car(30, 40, nan))


def test_only_an_open_vocabulary_detector_gets_queries() -> None:
    open_vocabulary = FixedDetector(())
    ImageJudge(open_vocabulary, lmd.DETECT)("base", [ImageRequest(PROMPT, 0, "lmd-1")], [PICTURE])
    assert open_vocabulary.queries == [["car"]]
    closed_set = FixedDetector((car(-9, 10),), classes=("car",))
    (result,) = ImageJudge(closed_set, lmd.DETECT)("base", [ImageRequest(PROMPT, 0, "lmd-1")], [PICTURE])
    assert closed_set.queries is None and result.clipped == 0 and result.objects[0].box[0] == -9


def test_without_a_detector_there_is_no_verdict() -> None:
    (result,) = ImageJudge(None, None)("base", [ImageRequest(PROMPT, 0, "prompts-1")], [PICTURE])
    assert result.passed is None and result.atoms == ()


def test_optional_fields_are_left_out_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "base.jsonl"
    rows.append_results(file, [row("base"), row("base", "b", clip=0.25)])
    plain, scored = (json.loads(text) for text in file.read_text().splitlines())
    assert not {"clip", "clipped", "outside"} & plain.keys() and scored["clip"] == 0.25
    assert rows.read_results(file) == [row("base"), row("base", "b", clip=0.25)]


def requests_of(n: int) -> list[ImageRequest]:
    return [ImageRequest(PROMPT, index, "lmd-1") for index in range(n)]


def save_pictures(folder: Path, n: int = 20) -> list[ImageRequest]:
    requests = requests_of(n)
    (folder / "base").mkdir(parents=True)
    for request in requests:
        Image.fromarray(PICTURE).save(folder / "base" / request.file)
    return requests


def test_judging_stored_pictures_resumes_after_a_kill(tmp_path: Path) -> None:
    requests, judge = save_pictures(tmp_path), ImageJudge(FixedDetector((car(0, 10), car(30, 40))), lmd.DETECT)
    (tmp_path / "whole").mkdir(), (tmp_path / "cut").mkdir()
    source = StoredImages(tmp_path / "base")
    run_benchmark("base", requests, source, judge, tmp_path / "whole")
    whole = (tmp_path / "whole/base.jsonl").read_text()
    assert len(whole.splitlines()) == 20
    for divisor in (3, 2):
        (tmp_path / "cut/base.jsonl").write_text(whole[: len(whole) // divisor])
        run_benchmark("base", requests, source, judge, tmp_path / "cut")
        assert (tmp_path / "cut/base.jsonl").read_text() == whole


def test_a_missing_or_damaged_picture_is_an_error_with_its_name(tmp_path: Path) -> None:
    requests, judge = save_pictures(tmp_path), ImageJudge(FixedDetector(()), lmd.DETECT)
    file = tmp_path / "base" / requests[17].file
    whole = file.read_bytes()
    for content, message in [(whole[:60], "p-17.png is damaged or only half written"), (b"", "is damaged"),
                              (whole[: len(whole) - 20], "is damaged"), (None, r"p-17.png is missing")]:  # fmt: skip
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            run_benchmark("base", requests, StoredImages(tmp_path / "base"), judge, tmp_path)
        assert len(rows.read_results(tmp_path / "base.jsonl")) == 16  # the pictures before it have their lines
    with pytest.raises(UserError, match="is missing"):
        open_image(file)


def test_a_killed_run_resumes_to_the_same_results(tmp_path: Path) -> None:
    requests = save_pictures(tmp_path, 60)
    lines = tmp_path / "base.jsonl"

    class Killed(FixedDetector):
        def detect(self, images: Any, queries: Any = None) -> Any:
            if lines.exists() and lines.stat().st_size:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().detect(images, queries)

    def killed() -> None:
        judge = ImageJudge(Killed((car(0, 10),)), lmd.DETECT)
        run_benchmark("base", requests, StoredImages(tmp_path / "base"), judge, tmp_path)

    assert end_of_child(killed) == -signal.SIGKILL
    assert 16 <= len(rows.read_results(lines)) < 60
    judge, source = ImageJudge(FixedDetector((car(0, 10),)), lmd.DETECT), StoredImages(tmp_path / "base")
    run_benchmark("base", requests, source, judge, tmp_path)
    (tmp_path / "again").mkdir()
    run_benchmark("base", requests, source, judge, tmp_path / "again")
    assert lines.read_text() == (tmp_path / "again/base.jsonl").read_text()
