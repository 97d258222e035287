"""Relabelling beside the rounds: a user's own images, and images judged by DPT's adapter without a detector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dpt.claims.caption_edits import alternatives
from dpt.claims.facts import Prompt
from dpt.claims.parse import UnsupportedPrompt, parse_prompt
from dpt.claims.relabel import DROPPED, RelabelConfig, relabel
from dpt.claims.words import LMD_OPENING
from dpt.data.folder import CaptionedPicture, read_picture_folder
from dpt.data.images import read_image
from dpt.distributed import ONE_PROCESS, Processes
from dpt.errors import UserError
from dpt.evaluation.suites import lmd, pocket
from dpt.methods.ipr.config import DetectorConfig, WeightConfig
from dpt.methods.ipr.datasets import BATCH, OpenedDetector, RelabelCounts, counts_of, open_detector, write_relabelled
from dpt.methods.ipr.folders import StageFolder, digest_of, text_digest
from dpt.methods.ipr.prompts import OPEN, unique_id
from dpt.methods.ipr.sampling import SAMPLE, SampledImage, sampled_images
from dpt.records import to_plain

if TYPE_CHECKING:
    from dpt.score.matching import MatchingScorer


NOT_UNDERSTOOD = "its caption is not understood"


@dataclass(frozen=True)
class PictureFolder:
    """Images, and the prompts that their captions parse to."""

    folder: Path
    pictures: tuple[CaptionedPicture, ...]
    prompts: tuple[Prompt | None, ...]
    """None for a caption that the rule-based parser does not understand."""

    @classmethod
    def read(cls, folder: Path) -> PictureFolder:
        pictures = tuple(read_picture_folder(folder))
        prompts = tuple(_prompt(picture) for picture in pictures)
        if not any(prompts):
            example = pictures[0].caption
            raise UserError(f"none of the {len(pictures)} captions of {folder} is understood; one is {example!r}")
        return cls(folder, pictures, prompts)

    @property
    def understood(self) -> tuple[Prompt, ...]:
        return tuple(prompt for prompt in self.prompts if prompt is not None)


def _prompt(picture: CaptionedPicture) -> Prompt | None:
    try:
        return replace(parse_prompt(picture.caption).claims, id=picture.file_name, where=picture.where)
    except UnsupportedPrompt:
        return None


def detector_of(source: PictureFolder, config: DetectorConfig) -> OpenedDetector:
    """The detector of the config, or the one that reads the prompts: the oracle for rendered scenes."""
    prompts = source.understood
    scenes = bool(prompts) and all(prompt.category == "scene" for prompt in prompts)
    lmd_templates = bool(prompts) and all(prompt.text.lower().startswith(LMD_OPENING.lower()) for prompt in prompts)
    queries = pocket.DETECT if scenes else lmd.DETECT if lmd_templates else OPEN
    coloured = any(noun.colour for prompt in prompts for noun in prompt.nouns)
    return open_detector(config, "oracle" if scenes else "owlv2", queries, coloured)


def relabel_pictures(
    source: PictureFolder,
    detector: OpenedDetector,
    out: Path,
    config: RelabelConfig,
    weights: WeightConfig,
    unparsed: Literal["drop", "keep"] = "drop",
    on_done: Callable[[int], None] = lambda n: None,
) -> RelabelCounts:
    """Write OUT as an imagefolder. `unparsed`: drop or keep images whose caption the parser does not understand."""
    detector.check(source.understood)
    inputs = {
        "pictures": text_digest([[p.file_name, p.caption, p.weight] for p in source.pictures]),
        "detector": detector.identity,
        "unparsed": unparsed,
        **to_plain(config),
        **to_plain(weights),
    }
    stage = StageFolder(out, inputs)
    if stage.is_complete():
        raise UserError(f"{out} has been made from {source.folder} already: choose another --out")
    rows = list(_rows(source, detector, config, weights, unparsed, on_done))
    return write_relabelled(stage, source.folder, rows)


def _rows(
    source: PictureFolder,
    detector: OpenedDetector,
    config: RelabelConfig,
    weights: WeightConfig,
    unparsed: Literal["drop", "keep"],
    on_done: Callable[[int], None],
) -> Iterator[dict[str, Any]]:
    entries = list(zip(source.pictures, source.prompts, strict=True))
    for start in range(0, len(entries), BATCH):
        batch = entries[start : start + BATCH]
        known = [(picture.file_name, prompt) for picture, prompt in batch if prompt is not None]
        found = iter(detector.detect(source.folder, [n for n, _ in known], [p for _, p in known]) if known else [])
        for picture, prompt in batch:
            row: dict[str, Any] = {
                "file_name": picture.file_name,
                "original_prompt": picture.caption,
                "detector": detector.identity,
            }
            if prompt is None:
                kept = {"prompt": picture.caption, "weight": picture.weight, "correctness": None, "reason": "unparsed"}
                left_out = {"correctness": None, "reason": "unparsed", "skipped": NOT_UNDERSTOOD}
                yield row | (kept if unparsed == "keep" else left_out)
                continue
            detections = next(found)
            result = relabel(prompt, detections, config, detector.query_config)
            confidences = tuple(detection.confidence for detection in detections.objects)
            weight = round(picture.weight * weights.of(result.correct, result.reason, confidences), 6)
            row |= {"correctness": result.correct, "reason": result.reason}
            caption = picture.caption if result.correct else result.caption
            yield row | ({"skipped": result.skipped} if caption is None else {"prompt": caption, "weight": weight})
        on_done(len(batch))


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
