"""Draw a suite by one method and judge every picture, going on where a killed run was left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dpt.backbone import Backbone
from dpt.backbone.randomness import derived_seed
from dpt.evaluation.bench import rows
from dpt.evaluation.detectors.base import Detector
from dpt.evaluation.judge import judge
from dpt.evaluation.suites.base import Prompt
from dpt.sampling.draw import Request, Settings, draw
from dpt.sampling.pictures import to_picture

TOGETHER = 16
"""Pictures drawn in one batch. Which ones is fixed, since what is beside a picture changes how it is rounded: so the
same lines come out however often a run is killed, and wherever its parts are drawn."""


@dataclass(frozen=True)
class Asked:
    """Picture `index` of a prompt. Its noise is a function of (suite, prompt, index): the same for every method."""

    prompt: Prompt
    index: int
    suite: str

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt.id, self.index

    @property
    def seed(self) -> int:
        return derived_seed(0, 0, f"{self.suite}/{self.prompt.id}")

    @property
    def file(self) -> str:
        return f"{self.prompt.id}-{self.index}.png"


def everything(prompts: Sequence[Prompt], per_prompt: int, suite: str) -> list[Asked]:
    return [Asked(prompt, index, suite) for prompt in prompts for index in range(per_prompt)]


def run(
    method: str,
    backbone: Backbone,
    asked: Sequence[Asked],
    detector: Detector,
    settings: Settings,
    out: Path,
    on_done: Callable[[int], None] = lambda _: None,
) -> None:
    """Lines into out/METHOD.jsonl, pictures into out/METHOD/."""
    lines, pictures = out / f"{method}.jsonl", out / method
    pictures.mkdir(parents=True, exist_ok=True)
    rows.mend(lines)
    done = {row.key for row in rows.read(lines)} if lines.exists() else set()
    for start in range(0, len(asked), TOGETHER):
        part = asked[start : start + TOGETHER]
        if any(one.key not in done for one in part):
            judged = _judged(method, backbone, part, detector, settings, pictures)
            rows.append(lines, (row for row in judged if row.key not in done))
        on_done(len(part))


def _judged(
    method: str, backbone: Backbone, part: Sequence[Asked], detector: Detector, settings: Settings, folder: Path
) -> list[rows.Row]:
    requests = [Request(one.prompt.text, one.seed, one.index) for one in part]
    drawn = [to_picture(image) for image in draw(backbone, requests, settings, batch_size=TOGETHER, exact=False)]
    for one, picture in zip(part, drawn, strict=True):
        _save(picture, folder / one.file)
    seen = detector.detect([np.asarray(picture) for picture in drawn])
    return [
        rows.row_of(method, one.prompt, one.index, one.seed, found, judge(one.prompt, found))
        for one, found in zip(part, seen, strict=True)
    ]


def _save(picture: Image.Image, file: Path) -> None:
    work = file.with_suffix(".tmp")
    picture.save(work, format="PNG")
    work.replace(file)
