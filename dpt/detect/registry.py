"""Detectors by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dpt.claims.judge import DetectConfig
from dpt.detect.base import Detector
from dpt.detect.reader import RECORD
from dpt.embedded import CHECKOUT, EMBEDDED_READER, embedded_path
from dpt.errors import UserError

if TYPE_CHECKING:
    from dpt.score.clip import Clip

ORACLE = "oracle"
"""Reads rendered scenes exactly."""

NOISY_ORACLE = "noisy-oracle"
"""Reads rendered scenes with the errors of a learned detector."""

READER = "reader"
"""A small network that reads pocket pictures, trained on pictures of no method: the held-out judge."""

OWN = (ORACLE, NOISY_ORACLE, READER)
"""Names that `open_detector` opens itself, without a model's folder or hub id."""

READS_COLOURS = (ORACLE, NOISY_ORACLE, READER)
"""Those of them that name the colour of each object."""


def reads_colours(name: str) -> bool:
    """Whether the detector of this name, or in this folder, names colours itself."""
    return name in READS_COLOURS or _is_reader(name)


def open_detector(name: str, config: DetectConfig, colours: Clip | None = None, device: str | None = None) -> Detector:
    """Open the oracle, the reader, or a model by type, folder or hub id.

    The types are OWL-ViT, OWLv2, Grounding DINO; DETR, RT-DETR, D-FINE.

    `colours` classifies the colour of each box. To add a detector, implement `Detector` and open it here.
    """
    if reads_colours(name) and colours is not None:
        raise UserError(f"--colours has no effect: the {name} reads colours itself")
    if name == ORACLE:
        from dpt.data.scenes.world import POCKET_WORLD
        from dpt.detect.oracle.oracle import Oracle

        return Oracle(POCKET_WORLD)
    if name == NOISY_ORACLE:
        from dpt.detect.oracle.noisy import NoisyOracle

        return NoisyOracle()
    if name == READER or _is_reader(name):
        from dpt.detect.reader.detector import open_reader

        return open_reader(CHECKOUT / EMBEDDED_READER if name == READER else embedded_path(name), device)
    from dpt.backbone.opening import open_hf_model
    from dpt.detect.coco import COCO_CHECKPOINTS, COCO_MODEL_TYPES, open_coco
    from dpt.detect.zero_shot import DEFAULT_CHECKPOINTS, MODEL_TYPES, open_zero_shot

    check_name(name)
    known = {**DEFAULT_CHECKPOINTS, **COCO_CHECKPOINTS}
    folder = open_hf_model(known.get(name, name), (*MODEL_TYPES, *COCO_MODEL_TYPES), "detector")
    opened: Detector = (open_coco if folder.model_type in COCO_MODEL_TYPES else open_zero_shot)(
        name, config, colours, device
    )
    return opened


def check_name(name: str) -> None:
    """Refuse a name that no detector can have, before anything is opened."""
    from dpt.detect.coco import COCO_CHECKPOINTS
    from dpt.detect.zero_shot import DEFAULT_CHECKPOINTS

    known = (*OWN, *DEFAULT_CHECKPOINTS, *COCO_CHECKPOINTS)
    if name not in known and "/" not in name and not Path(name).exists():
        raise UserError(f"there is no detector {name!r}: give one of {', '.join(known)}, a model's folder or a hub id")


def _is_reader(name: str) -> bool:
    return (embedded_path(name) / RECORD).is_file()


def with_config(detector: Detector, config: DetectConfig) -> Detector:
    """The same opened model under another config; a detector without one, such as the oracle, is returned as it is."""
    from dpt.detect.coco import CocoDetector
    from dpt.detect.zero_shot import ZeroShotDetector

    return replace(detector, config=config) if isinstance(detector, CocoDetector | ZeroShotDetector) else detector
