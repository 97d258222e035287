"""Who looks at the pictures of a benchmark: the detector, what reads colours, CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt.cli.common.console import warn
from dpt.embedded import clip_location, model_location
from dpt.errors import fail

if TYPE_CHECKING:
    from dpt.evaluation.bench.judging import ExtraScores, ImageJudge
    from dpt.evaluation.suites.base import Suite
    from dpt.score.clip import Clip
    from dpt.score.matching import MatchingScorer


ORACLE, NOBODY = "oracle", "none"


def panel_for(suite: Suite, detector: str | None, colours: str | None, beside: ExtraScores) -> ImageJudge:
    from dpt.evaluation.bench.judging import ImageJudge
    from dpt.evaluation.suites.base import check_classes

    if detector == NOBODY:
        if colours:
            fail("--colours reads the boxes of a detector, and --detector none has none")
        return ImageJudge(None, None, beside)
    if suite.detect_config is None:
        if detector or colours:
            fail(f"the suite {suite.name} is not judged: --{'detector' if detector else 'colours'} would do nothing")
        if not beside.identities:
            warn(f"the suite {suite.name} is not judged, and without --clip its pictures are not scored either")
        return ImageJudge(None, None, beside)
    opened = _open_detector(suite, detector or suite.detector or ORACLE, colours)
    check_classes(suite.prompts, opened.classes, f"the detector {opened.identity}")
    return ImageJudge(opened, suite.detect_config, beside)


def open_beside(suite: Suite, clip: str | None, itm: Path | None, model: str) -> ExtraScores:
    from dpt.evaluation.bench.judging import ExtraScores

    return ExtraScores(open_clip(clip, suite), open_matching(itm, model))


def open_matching(checkpoint: Path | None, model: str) -> MatchingScorer | None:
    """The adapter there, and the model as that adapter was trained to read it: with its LoRA, if it has one."""
    if checkpoint is None:
        return None
    from dpt.backbone import open_backbone
    from dpt.checkpoints import open_checkpoint
    from dpt.score.matching import MatchingScorer
    from dpt.weights import content_hash

    opened = open_checkpoint(checkpoint)
    if opened.adapter is None:
        fail(f"{checkpoint} has no adapter, whose score --itm asks for")
    backbone = open_backbone(model_location(model), dtype="float32")
    if lora := opened.attach(backbone):
        lora.merge()
    digest = content_hash({**opened.adapter.state_dict(), **(opened.lora.tensors if opened.lora else {})})
    return MatchingScorer(backbone, opened.adapter, f"adapter {checkpoint.resolve().name} {digest[:12]}")


def _open_detector(suite: Suite, name: str, colours: str | None) -> Any:
    if name == ORACLE:
        from dpt.data.scenes.world import POCKET_WORLD
        from dpt.detect.oracle.oracle import Oracle

        if colours:
            fail("the oracle names colours itself: --colours would do nothing")
        return Oracle(POCKET_WORLD)
    from dpt.detect.zero_shot import open_zero_shot
    from dpt.score.clip import Clip

    assert suite.detect_config is not None
    if colours and suite.detect_config.coloured:
        fail(f"the suite {suite.name} asks for colours in its queries: --colours would do nothing")
    if not colours and suite.needs_colours and not suite.detect_config.coloured:
        fail(f"the suite {suite.name} asks for the colours of boxes, which this detector does not name: say --colours")
    return open_zero_shot(name, suite.detect_config, Clip.open(clip_location(colours)) if colours else None)


def open_clip(name: str | None, suite: Suite) -> Clip | None:
    if name is None:
        return None
    from dpt.score.clip import Clip

    clip = Clip.open(clip_location(name))
    if cut := clip.cut([prompt.text for prompt in suite.prompts]):
        warn(f"{cut} of {len(suite.prompts)} prompts are longer than {clip.identity} reads: it scores their beginning")
    return clip


def identity_of(suite: Suite, panel: ImageJudge) -> dict[str, str]:
    """What a verdict depends on beside the picture."""
    found = {"detector": panel.detector.identity if panel.detector else "none", "suite": suite.id}
    if suite.judge:
        found["judge"] = suite.judge
    return {**found, **panel.beside.identities, "suite_hash": suite.hash}
