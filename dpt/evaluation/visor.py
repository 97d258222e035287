"""VISOR (arXiv 2212.10015) and the accuracy of IPR, from detection dumps and from VISOR's result files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpt.claims.facts import RelationByCentres
from dpt.claims.judge import DetectConfig, Detections, JudgedObject
from dpt.claims.relabel import RelabelConfig, relabel
from dpt.data.files.reading import Row
from dpt.errors import UserError
from dpt.evaluation.suites.sr2d import RELATIONS
from dpt.intervals import Share
from dpt.methods.ipr.folders import DetectionDump, SampledImage, noun_pair
from dpt.untrusted import read_json_object

STRICT = RelabelConfig(others_are_faults=True)


@dataclass(frozen=True)
class VisorScores:
    """Percentages over the prompts with a relation; "and" and single objects do not count."""

    images: int
    object_accuracy: float
    """Both objects are detected."""
    conditional: float
    """The relation holds, of the images with both objects; 0 if there are none."""
    unconditional: float
    at_least: tuple[float, ...]
    """VISOR_n: the prompts of which at least n images show both objects in the relation."""

    @property
    def text(self) -> str:
        counted = "".join(f"  VISOR_{n} {value:.2f}" for n, value in enumerate(self.at_least, start=1))
        parts = f"OA {self.object_accuracy:.2f}  uncond {self.unconditional:.2f}  cond {self.conditional:.2f}{counted}"
        return f"VISOR of {self.images} images: {parts}"


def visor_scores(results: Mapping[str, Mapping[str, Any]]) -> VisorScores:
    """Of the entries of a result file, by image id: "412_0" is image 0 of prompt 412."""
    both = placed = images = 0
    by_prompt: dict[str, list[bool]] = defaultdict(list)
    for image_id, entry in results.items():
        if entry["rel_type"] not in RELATIONS:
            continue
        images += 1
        found = entry["recall"] == 2
        right = found and entry["sra"] == 1
        both, placed = both + found, placed + right
        by_prompt[image_id.rpartition("_")[0]].append(right)
    if not images:
        raise UserError("there is no image of a prompt with a relation, which VISOR is about")
    most = max(map(len, by_prompt.values()))
    return VisorScores(
        images,
        100 * both / images,
        100 * placed / both if both else 0.0,
        100 * placed / images,
        tuple(100 * sum(sum(own) >= n for own in by_prompt.values()) / len(by_prompt) for n in range(1, most + 1)),
    )


def read_visor(file: Path) -> dict[str, dict[str, Any]]:
    entries = {}
    for key, content in read_json_object(file).items():
        row = Row(content, f"{file}, entry {key!r}")
        if row.get("recall", int) not in (0, 1, 2) or row.get("sra", int) not in (0, 1):
            row.fail("'recall' is 0, 1 or 2 and 'sra' 0 or 1")
        entries[key] = {"recall": row.get("recall", int), "sra": row.get("sra", int), "rel_type": row.text("rel_type")}
    return entries


def visor_results(images: Sequence[SampledImage], dump: DetectionDump) -> dict[str, dict[str, Any]]:
    """VISOR's result file for the images of prompts with two nouns."""
    pairs = [image for image in images if len(image.prompt.nouns) == 2]
    return {image.image_id: _visor_entry(image, dump.detections(image)[0]) for image in pairs}


def _visor_entry(image: SampledImage, detections: Detections) -> dict[str, Any]:
    """VISOR's result for an image: how many of the two nouns were detected, and whether some pair is in relation."""
    first, second = image.prompt.nouns[:2]
    names = {detection.label for detection in detections.objects}
    claim = next((claim for claim in image.prompt.facts if isinstance(claim, RelationByCentres)), None)
    both = [noun.shape in names for noun in (first, second)]
    things = [JudgedObject(d.label, d.colour or "", d.size or "", d.box, d.confidence) for d in detections.objects]
    return {
        "classes": [detection.label for detection in detections.objects],
        "centroid": [list(detection.box.centre) for detection in detections.objects],
        "recall": sum(both),
        "sra": int(claim is not None and claim.holds(things)),
        "rel_type": noun_pair(image.prompt)[2],
        "text": image.prompt.text,
    }


def accuracy_table(images: Sequence[SampledImage], dump: DetectionDump, config: DetectConfig | None) -> str:
    """IPR's accuracy: exactly the objects of the prompt, in its relation. With Wilson intervals."""
    right: dict[str, list[bool]] = defaultdict(list)
    number: list[bool] = []
    for image in images:
        result = relabel(image.prompt, dump.detections(image)[0], STRICT, config)
        number.append(result.correct or result.reason != "number")
        for group in ("all", _axis(image.prompt.category)):
            right[group].append(result.correct)
    lines = [f"| {group} | {len(values)} | {Share(sum(values), len(values))} |" for group, values in right.items()]
    lines.append(f"| right number | {len(number)} | {Share(sum(number), len(number))} |")
    return "\n".join(["| accuracy of | images | percent (95 %) |", "|---|---|---|", *lines])


def _axis(category: str) -> str:
    return {"left": "left-right", "right": "left-right", "above": "above-below", "below": "above-below"}.get(
        category, category
    )
