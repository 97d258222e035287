"""Detect the nouns of their prompts in sampled images, relabel these into an imagefolder, merge several rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpt.claims.facts import Prompt
from dpt.claims.judge import DetectConfig, Detections, counted_detections
from dpt.claims.relabel import EMPTY, RelabelConfig, relabel
from dpt.data.folder import read_picture_folder
from dpt.data.images import read_image
from dpt.detect.base import Detector, check_finite, clip_boxes
from dpt.distributed import ONE_PROCESS, Processes
from dpt.errors import UserError
from dpt.evaluation.suites.base import check_classes
from dpt.files import sha256
from dpt.methods.ipr.config import DetectorConfig, MergeConfig, WeightConfig
from dpt.methods.ipr.folders import (
    DUMP,
    METADATA,
    RECORD,
    SKIPPED,
    DetectionDump,
    SampledImage,
    StageFolder,
    digest_of,
    dump_entry,
    link_or_copy,
    metadata_row,
    read_metadata,
    read_stage,
    text_digest,
    write_dump,
    write_lines,
)
from dpt.methods.ipr.sampling import SAMPLE, sampled_images
from dpt.records import from_plain, to_plain

DETECT = "detect"

BATCH = 16


@dataclass(frozen=True)
class OpenedDetector:
    """A detector, and the query config that filters its detections."""

    detector: Detector
    config: DetectConfig

    @property
    def query_config(self) -> DetectConfig | None:
        """None for a closed-set detector."""
        return self.config if self.detector.classes is None else None

    @property
    def identity(self) -> str:
        return self.detector.identity

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts with a noun that the detector lacks."""
        from dpt.detect.coco import check_colours

        check_classes(prompts, self.detector.classes, f"the detector {self.identity}")
        check_colours(self.detector, prompts)

    def detect(self, folder: Path, names: Sequence[str], prompts: Sequence[Prompt]) -> list[Detections]:
        """Per image, the detections of its prompt's nouns that pass the query config."""
        import numpy as np

        pixels = [np.asarray(read_image(folder / name, folder)[0]) for name in names]
        config = self.query_config
        queries = None if config is None else [list(config.phrases(prompt)) for prompt in prompts]
        results = []
        for name, prompt, array, detections in zip(
            names, prompts, pixels, self.detector.detect(pixels, queries), strict=True
        ):
            check_finite(detections, self.identity, str(folder / name))
            if config is not None:
                clipped = clip_boxes(detections, array.shape[1], array.shape[0])
                results.append(counted_detections(prompt, clipped, config))
            else:
                results.append(_named(prompt, detections))
        return results


def _named(prompt: Prompt, detections: Detections) -> Detections:
    """If the prompt allows other objects, keep the detections of its nouns, as an open-vocabulary detector would."""
    if prompt.closed or any(noun.shape is None for noun in prompt.nouns):
        return detections
    shapes = {noun.shape for noun in prompt.nouns}
    return replace(detections, objects=tuple(d for d in detections.objects if d.label in shapes))


PUBLISHED_DUMP = DetectConfig("{noun}", 0.0)
"""The query config of a dump without a record: its labels are the nouns of the prompts, and all its boxes count."""


def read_detections(path: Path) -> tuple[DetectionDump, DetectConfig | None]:
    """Read the dump of a folder of `detect`, or a published file, and the query config that labels its boxes."""
    if path.is_dir():
        recorded = read_stage(path, DETECT).get("query_config")
        config = None if recorded is None else from_plain(DetectConfig, recorded, str(path / RECORD))
        return DetectionDump.read(path / DUMP), config
    return DetectionDump.read(path), PUBLISHED_DUMP


def open_detector(config: DetectorConfig, default: str, detect_config: DetectConfig, coloured: bool) -> OpenedDetector:
    """Open the detector of the config, else `default`. `coloured`: whether the prompts make claims about colours."""
    from dpt.detect.registry import check_name, reads_colours
    from dpt.detect.registry import open_detector as open_by_name
    from dpt.embedded import clip_location

    name = config.detector or default
    threshold, nms = config.detect_threshold, config.detect_nms
    if threshold is not None:
        detect_config = replace(detect_config, threshold=threshold, thresholds=(), above=True)
    if nms is not None:
        detect_config = replace(detect_config, nms=nms)
    colours = None
    if config.colours is not None:
        from dpt.score.clip import Clip

        colours = Clip.open(clip_location(config.colours))
    elif coloured and not reads_colours(name) and not detect_config.coloured:
        check_name(name)
        raise UserError(f"the prompts make claims about colours, which {name} does not read: give --colours CLIP")
    return OpenedDetector(open_by_name(name, detect_config, colours), detect_config)


def detect(
    samples: Path,
    detector: OpenedDetector,
    out: Path,
    *,
    group: Processes = ONE_PROCESS,
    on_done: Callable[[int], None] = lambda n: None,
) -> StageFolder:
    """Write the detections of every image of a folder of `sample`."""
    stage = StageFolder(out, {"samples": digest_of(samples, SAMPLE), "detector": detector.identity})
    if group.from_main(stage.is_complete):
        return stage
    images = sampled_images(samples)
    detector.check([image.prompt for image in images])

    def detect_in(own: Sequence[SampledImage]) -> list[Detections]:
        results: list[Detections] = []
        for start in range(0, len(own), BATCH):
            batch = own[start : start + BATCH]
            results += detector.detect(samples, [i.file_name for i in batch], [i.prompt for i in batch])
            on_done(len(batch))
        return results

    results = group.map(images, detect_in)

    def write() -> None:
        work = stage.begin()
        entries = [dump_entry(i, d, detector.identity) for i, d in zip(images, results, strict=True)]
        write_dump(entries, work / DUMP)
        boxes = sum(len(result.objects) for result in results)
        empty = sum(not result.objects for result in results)
        counts = {"images": len(images), "boxes": boxes, "images_without_boxes": empty}
        config = detector.query_config
        stage.finish(stage=DETECT, query_config=config and to_plain(config), **counts)

    group.from_main(write)
    return stage


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
