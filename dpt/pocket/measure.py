"""Judge images of the pocket model with the oracle: the table of its model card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dpt.backbone import Backbone
from dpt.claims.facts import Prompt
from dpt.claims.judge import Detections, Verdict, judge
from dpt.data.images import to_pil
from dpt.data.scenes.world import POCKET_WORLD
from dpt.detect.oracle.oracle import Oracle
from dpt.errors import UserError
from dpt.evaluation.contact_sheet import contact_sheet
from dpt.evaluation.suites.pocket import CATEGORIES, pocket_prompts
from dpt.intervals import Share
from dpt.sampling.draw import Request, SamplingSettings, draw

BATCH = 20

SHOWN = 24

OVERVIEW_SHOWN = 4


@dataclass(frozen=True)
class JudgedImage:
    prompt: Prompt
    pixels: np.ndarray
    detections: Detections
    verdict: Verdict


def draw_category(
    backbone: Backbone, category: str, prompts: int, seed: int, settings: SamplingSettings, per_prompt: int = 1
) -> list[JudgedImage]:
    repeated = [prompt for prompt in pocket_prompts(category, prompts, seed) for _ in range(per_prompt)]
    requests = [Request(prompt.text, _picture_seed(prompt, seed), i % per_prompt) for i, prompt in enumerate(repeated)]
    pictures = draw(backbone, requests, settings, batch_size=BATCH, exact=False)
    oracle = Oracle(POCKET_WORLD)
    return list(_judged(repeated, pictures, oracle, category))


def _judged(
    prompts: Sequence[Prompt], pictures: Iterator[Tensor], oracle: Oracle, category: str
) -> Iterator[JudgedImage]:
    for prompt, picture in zip(tqdm(prompts, desc=category, unit="image"), pictures, strict=True):
        pixels = np.asarray(to_pil(picture))
        (detections,) = oracle.detect([pixels])
        yield JudgedImage(prompt, pixels, detections, judge(prompt, detections))


def _picture_seed(prompt: Prompt, seed: int) -> int:
    return seed * 100_000 + int(prompt.id.rsplit("-", 1)[1])


@dataclass(frozen=True)
class CategoryResult:
    category: str
    passed: Share
    passed_seen: Share
    """Prompts whose combinations occurred in training."""
    passed_unseen: Share
    objects_readable: Share
    pictures_readable: Share
    first_faults: dict[str, int]


def summarise(category: str, judged: Sequence[JudgedImage]) -> CategoryResult:
    readable = sum(len(image.detections.objects) for image in judged)
    faults = Counter(image.verdict.first_fault.sort for image in judged if image.verdict.first_fault)
    return CategoryResult(
        category,
        _passed(judged),
        _passed([image for image in judged if not image.prompt.unseen]),
        _passed([image for image in judged if image.prompt.unseen]),
        Share(readable, readable + sum(len(image.detections.unreadable) for image in judged)),
        Share(sum(not image.detections.unreadable for image in judged), len(judged)),
        dict(faults),
    )


def _passed(judged: Sequence[JudgedImage]) -> Share:
    return Share(sum(image.verdict.passed for image in judged), len(judged))


def table(results: Sequence[CategoryResult]) -> str:
    columns = ("category", "right, %", "seen in training", "never seen", "objects readable", "pictures readable")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for r in results:
        cells = (r.category, r.passed, r.passed_seen, r.passed_unseen, r.objects_readable, r.pictures_readable)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def sheet(shown: Sequence[JudgedImage], title: str) -> Image.Image:
    """A contact sheet of images, not selected, each with its prompt and the oracle's verdict."""
    captions = [f"{'right' if image.verdict.passed else 'wrong'}: {image.prompt.text}" for image in shown]
    return contact_sheet([Image.fromarray(image.pixels) for image in shown], captions, columns=8, title=title)


def measure(
    backbone: Backbone, out: Path, prompts: int, seed: int, settings: SamplingSettings, per_prompt: int = 1
) -> str:
    """Sample and judge every category; write `pocket.json`, `table.md` and contact sheets; return the table."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror}") from error
    results, overview = [], []
    for category in CATEGORIES:
        judged = draw_category(backbone, category, prompts, seed, settings, per_prompt)
        results.append(summarise(category, judged))
        overview += judged[:OVERVIEW_SHOWN]
        sheet(judged[:SHOWN], category).save(out / f"{category}.png", optimize=True)
    sheet(overview, "").save(out / "overview.png", optimize=True)
    record = {
        "model": backbone.model_hash,
        "detector": Oracle(POCKET_WORLD).identity,
        "prompts": prompts,
        "pictures_per_prompt": per_prompt,
        "seed": seed,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "scheduler": settings.scheduler,
        "categories": {r.category: _plain(r) for r in results},
    }
    (out / "pocket.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "table.md").write_text(table(results) + "\n")
    return table(results)


def _plain(result: CategoryResult) -> dict[str, object]:
    shares = ("passed", "passed_seen", "passed_unseen", "objects_readable", "pictures_readable")
    counted = {name: [getattr(result, name).hits, getattr(result, name).total] for name in shares}
    return {**counted, "first_faults": result.first_faults}
