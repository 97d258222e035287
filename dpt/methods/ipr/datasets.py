"""Relabel detected images into an imagefolder with captions, and merge the folders of several rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpt.claims.detections import DetectConfig
from dpt.claims.relabel import EMPTY, RelabelConfig, relabel
from dpt.data.folder import read_picture_folder
from dpt.errors import UserError
from dpt.files import sha256
from dpt.methods.ipr.config import MergeConfig, WeightConfig
from dpt.methods.ipr.detecting import read_detections
from dpt.methods.ipr.folders import RECORD, StageFolder, digest_of, link_or_copy, read_stage, text_digest, write_lines
from dpt.methods.ipr.records import METADATA, SKIPPED, DetectionDump, SampledImage, metadata_row, read_metadata
from dpt.methods.ipr.sampling import SAMPLE, sampled_images
from dpt.records import to_plain

RELABEL, MERGE = "relabel", "merge"


@dataclass(frozen=True)
class RelabelCounts:
    """How many images of a round were correct, relabelled or skipped."""

    images: int
    correct: int
    relabelled: int
    kept_false: int
    """Images that keep a caption which they do not show."""
    not_judged: int
    """Images that keep a caption which the parser does not understand."""
    skipped: dict[str, int]
    """Images without a caption, by reason."""
    reasons: dict[str, int]
    """Images that do not show their prompt, by the test that failed."""

    @property
    def text(self) -> str:
        skipped = "".join(f", {n} left out ({why})" for why, n in self.skipped.items())
        kept = f", {self.kept_false} keep a false caption" if self.kept_false else ""
        kept += f", {self.not_judged} keep a caption that is not understood" if self.not_judged else ""
        failed = ", ".join(f"{n} {reason}" for reason, n in self.reasons.items())
        wrong = f" (wrong: {failed})" if failed else ""
        shown = f"{self.correct} of {self.images} images show their prompt{wrong}"
        return f"{shown}; {self.relabelled} relabelled{kept}{skipped}"


def relabel_images(
    samples: Path,
    detections: Path,
    out: Path,
    config: RelabelConfig,
    weights: WeightConfig,
    detector: str | None = None,
) -> RelabelCounts:
    """Write an imagefolder: the images with their captions and weights, and a line for each image that is left out.

    `detections` is a folder of `detect`, or a published dump; `detector` refuses the dump of any other.
    """
    dump, detect_config = read_detections(detections)
    if detector is not None:
        dump.check_detector(detector)
    inputs = {
        "samples": digest_of(samples, SAMPLE),
        "detections": sha256(dump.file)[:16],
        **to_plain(config),
        **to_plain(weights),
    }
    stage = StageFolder(out, inputs)
    if stage.is_complete():
        return counts_of(out)
    rows = [_row(image, dump, detect_config, config, weights) for image in sampled_images(samples)]
    return write_relabelled(stage, samples, rows)


def write_relabelled(stage: StageFolder, samples: Path, all_rows: Sequence[dict[str, Any]]) -> RelabelCounts:
    """Write the folder of a stage: images and metadata.jsonl for rows with a caption, skipped.jsonl for the others."""
    rows = [row for row in all_rows if "prompt" in row]
    skipped = [row for row in all_rows if "prompt" not in row]
    if not rows:
        _fail_empty(samples, len(skipped), Counter(str(row["skipped"]) for row in skipped))
    work = stage.begin()
    for row in rows:
        (work / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(samples / row["file_name"], work / row["file_name"])
    write_lines(work / METADATA, rows)
    write_lines(work / SKIPPED, skipped)
    counts = counted(rows, skipped)
    stage.finish(stage=RELABEL, counts=to_plain(counts))
    return counts


def _row(
    image: SampledImage,
    dump: DetectionDump,
    detect_config: DetectConfig | None,
    config: RelabelConfig,
    weights: WeightConfig,
) -> dict[str, Any]:
    detections, detector = dump.detections(image)
    result = relabel(image.prompt, detections, config, detect_config)
    confidences = tuple(detection.confidence for detection in detections.objects)
    weight = weights.of(result.correct, result.reason, confidences)
    return metadata_row(image, result, round(weight, 6), detector)


def _fail_empty(samples: Path, images: int, why: Counter[str]) -> None:
    reasons = ", ".join(f"{n}: {reason}" for reason, n in why.items())
    advice = "lower --detect_threshold, name another --detector, or give --empty_policy describe"
    if set(why) != {EMPTY}:
        advice = "name another --detector, or other options of relabelling"
    raise UserError(f"none of the {images} images of {samples} has a caption ({reasons}): {advice}")


def counted(rows: Sequence[dict[str, Any]], skipped: Sequence[dict[str, Any]]) -> RelabelCounts:
    """Count the rows of metadata.jsonl and of skipped.jsonl; a `correctness` of None means unknown."""
    every = [*rows, *skipped]
    changed = [row["prompt"] != row["original_prompt"] for row in rows if row["correctness"] is False]
    return RelabelCounts(
        images=len(every),
        correct=sum(row["correctness"] is True for row in every),
        relabelled=sum(changed),
        kept_false=len(changed) - sum(changed),
        not_judged=sum(row["correctness"] is None for row in rows),
        skipped=dict(sorted(Counter(str(row["skipped"]) for row in skipped).items())),
        reasons=dict(sorted(Counter(str(row["reason"]) for row in every if row["correctness"] is False).items())),
    )


def counts_of(folder: Path) -> RelabelCounts:
    from dpt.records import from_plain

    return from_plain(RelabelCounts, read_stage(folder, RELABEL).get("counts"), str(folder / RECORD))


def merge(folders: Sequence[Path], out: Path, config: MergeConfig) -> StageFolder:
    """One imagefolder of several: relabelled rounds, then the images of `--also`.

    Images are hard links where the file system allows it, else copies.
    """
    also = [(folder, read_picture_folder(folder)) for folder in config.also]
    inputs = {
        "folders": [digest_of(folder, RELABEL) for folder in folders],
        "also": [text_digest([[p.file_name, p.caption, p.weight] for p in pictures]) for _, pictures in also],
        "also_weight": config.also_weight,
    }
    stage = StageFolder(out, inputs)
    if stage.is_complete():
        return stage
    work, rows = stage.begin(), []
    origin: dict[str, Path] = {}
    for folder in folders:
        for row in read_metadata(folder / METADATA):
            name = row["file_name"]
            if name in origin:
                raise UserError(f"{origin[name]} and {folder} both have a picture {name}: merge different rounds")
            if not (folder / name).is_file():
                raise UserError(f"there is no picture {folder / name}, which {folder / METADATA} names")
            origin[name] = folder
            link_or_copy(folder / name, work / name)
            rows.append(row)
    for number, (folder, pictures) in enumerate(also):
        for nth, picture in enumerate(pictures):
            name = f"also{number}_{nth}{Path(picture.file_name).suffix.lower()}"
            link_or_copy(folder / picture.file_name, work / name)
            weight = round(picture.weight * config.also_weight, 6)
            rows.append({"file_name": name, "prompt": picture.caption, "weight": weight, "also": folder.name})
    write_lines(work / METADATA, rows)
    stage.finish(stage=MERGE, pictures=len(rows))
    return stage
