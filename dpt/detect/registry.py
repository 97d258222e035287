"""Detectors by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpt.claims.detections import DetectConfig
from dpt.detect.base import Detector
from dpt.errors import UserError

if TYPE_CHECKING:
    from dpt.score.clip import Clip

ORACLE = "oracle"
"""Reads rendered scenes exactly."""


def open_detector(name: str, config: DetectConfig, colours: Clip | None = None, device: str | None = None) -> Detector:
    """Open the oracle, or an OWL-ViT, OWLv2 or Grounding DINO model by type, folder or hub id.

    `colours` classifies the colour of each box. To add a detector, implement `Detector` and open it here.
    """
    if name == ORACLE:
        from dpt.data.scenes.world import POCKET_WORLD
        from dpt.detect.oracle.oracle import Oracle

        if colours is not None:
            raise UserError("--colours has no effect: the oracle reads colours itself")
        return Oracle(POCKET_WORLD)
    from dpt.detect.zero_shot import open_zero_shot

    return open_zero_shot(name, config, colours, device)
