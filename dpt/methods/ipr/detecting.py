"""Detect the nouns of their prompts in sampled images, and write the detection dump."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dpt.claims.detections import DetectConfig, Detections
from dpt.claims.facts import Prompt
from dpt.claims.judge import counted_detections
from dpt.data.images import read_image
from dpt.detect.base import Detector, check_finite, clip_boxes
from dpt.distributed import ONE_PROCESS, Processes
from dpt.evaluation.suites.base import check_classes
from dpt.methods.ipr.config import DetectorConfig
from dpt.methods.ipr.folders import RECORD, StageFolder, digest_of, read_stage
from dpt.methods.ipr.records import DUMP, DetectionDump, SampledImage, dump_entry, write_dump
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
    from dpt.detect.registry import ORACLE, check_name
    from dpt.detect.registry import open_detector as open_by_name
    from dpt.embedded import clip_location
    from dpt.errors import UserError

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
    elif coloured and name != ORACLE and not detect_config.coloured:
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
