"""A judge without a detector: DPT's adapter scores an image under its prompt and under captions that differ in one
fact. The best-scoring caption is the new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpt.claims.alternatives import alternatives
from dpt.claims.facts import Prompt
from dpt.claims.relabel import DROPPED, RelabelConfig
from dpt.data.images import read_image
from dpt.distributed import ONE_PROCESS, Processes
from dpt.methods.ipr.config import WeightConfig
from dpt.methods.ipr.datasets import RelabelCounts, counts_of, write_relabelled
from dpt.methods.ipr.folders import StageFolder, digest_of
from dpt.methods.ipr.prompts import unique_id
from dpt.methods.ipr.sampling import SAMPLE, SampledImage, sampled_images
from dpt.records import to_plain

if TYPE_CHECKING:
    from dpt.score.matching import MatchingScorer

NO_ALTERNATIVE = "the prompt has no captions to compare with"


@dataclass(frozen=True)
class AdapterJudge:
    scorer: MatchingScorer

    @classmethod
    def open(cls, base: str, checkpoint: Path) -> AdapterJudge:
        """Open the adapter of a checkpoint on the model `base`, with the checkpoint's LoRA merged."""
        from dpt.score.matching import MatchingScorer

        return cls(MatchingScorer.open(checkpoint, base, "--judge_ckpt"))

    @property
    def identity(self) -> str:
        return self.scorer.identity

    def scores(self, image: np.ndarray, prompt: Prompt) -> list[float]:
        """Matching scores of the prompt and then of each of its alternatives."""
        texts = [prompt.text, *(other.text for other in alternatives(prompt))]
        return self.scorer.scores([image] * len(texts), texts)


def relabel_by_adapter(
    samples: Path,
    judge: AdapterJudge,
    out: Path,
    config: RelabelConfig,
    weights: WeightConfig,
    *,
    group: Processes = ONE_PROCESS,
    on_done: Callable[[int], None] = lambda n: None,
) -> RelabelCounts:
    """Like `relabel_images`, but by the adapter's scores instead of detections."""
    inputs = {"samples": digest_of(samples, SAMPLE), "judge": judge.identity, **to_plain(config), **to_plain(weights)}
    stage = StageFolder(out, inputs)
    if group.from_main(stage.is_complete):
        return group.from_main(lambda: counts_of(out))
    images = sampled_images(samples)

    def judge_images(own: Sequence[SampledImage]) -> list[dict[str, object]]:
        rows = []
        for image in own:
            rows.append(_row(image, samples, judge, config, weights))
            on_done(1)
        return rows

    rows = group.map(images, judge_images)
    return group.from_main(lambda: write_relabelled(stage, samples, rows))


def _row(
    image: SampledImage, samples: Path, judge: AdapterJudge, config: RelabelConfig, weights: WeightConfig
) -> dict[str, object]:
    others = alternatives(image.prompt)
    row: dict[str, object] = {
        "file_name": image.file_name,
        "uniq_id": unique_id(image.prompt),
        "image_id": image.image_id,
        "original_prompt": image.prompt.text,
        "round": image.round,
        "detector": judge.identity,
    }
    if not others:
        return row | {"correctness": None, "reason": "unparsed", "skipped": NO_ALTERNATIVE}
    scores = judge.scores(np.asarray(read_image(samples / image.file_name, samples)[0]), image.prompt)
    best = max(range(len(scores)), key=scores.__getitem__)
    row |= {"correctness": best == 0, "reason": others[max(best - 1, 0)].reason, "margin": _margin(scores)}
    if best == 0 or config.failures == "keep":
        caption: str | None = image.prompt.text
    else:
        caption = others[best - 1].text if config.failures == "relabel" else None
    if caption is None:
        return row | {"skipped": DROPPED}
    weight = weights.of(best == 0, others[max(best - 1, 0)].reason, ())
    return row | {"prompt": caption, "weight": round(weight, 6)}


def _margin(scores: Sequence[float]) -> float:
    """How far the best score lies above the second."""
    first, second, *_ = sorted(scores, reverse=True)
    return round(first - second, 6)
