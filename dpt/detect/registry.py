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
    """`name`: oracle; owlv2, owlvit, grounding-dino; or a folder or hub id of such a model.

    `colours` names the colour of each box for a model that does not. To add a detector, write a class with the methods
    of `Detector` and open it here.
    """
    if name == ORACLE:
        from dpt.data.scenes.world import POCKET_WORLD
        from dpt.detect.oracle.oracle import Oracle

        if colours is not None:
            raise UserError("the oracle names colours itself: --colours would do nothing")
        return Oracle(POCKET_WORLD)
    from dpt.detect.zero_shot import open_zero_shot

    return open_zero_shot(name, config, colours, device)
