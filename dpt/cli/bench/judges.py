"""Opens the models that judge and score images: the detector, the colour classifier, CLIP, an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dpt.cli.common.console import warn
from dpt.detect.registry import ORACLE
from dpt.embedded import clip_location, model_location
from dpt.errors import fail

if TYPE_CHECKING:
    from dpt.detect.base import Detector
    from dpt.evaluation.bench.judging import ExtraScores, ImageJudge
    from dpt.evaluation.suites.base import Suite
    from dpt.score.clip import Clip
    from dpt.score.matching import MatchingScorer


NO_DETECTOR = "none"


def open_judge(suite: Suite, detector: str | None, colours: str | None, extra_scores: ExtraScores) -> ImageJudge:
    from dpt.detect.coco import check_colours
    from dpt.evaluation.bench.judging import ImageJudge
    from dpt.evaluation.suites.base import check_classes

    if detector == NO_DETECTOR:
        if colours:
            fail("--colours has no effect with --detector none")
        return ImageJudge(None, None, extra_scores)
    if suite.detect_config is None:
        if detector or colours:
            fail(f"the suite {suite.name} is not judged: --{'detector' if detector else 'colours'} has no effect")
        if not extra_scores.identities:
            warn(f"the suite {suite.name} is not judged, and without --clip its images are not scored either")
        return ImageJudge(None, None, extra_scores)
    opened_detector = _open_detector(suite, detector or suite.detector or ORACLE, colours)
    check_classes(suite.prompts, opened_detector.classes, f"the detector {opened_detector.identity}")
    check_colours(opened_detector, suite.prompts)
    return ImageJudge(opened_detector, suite.detect_config, extra_scores)


def _open_detector(suite: Suite, name: str, colours: str | None) -> Detector:
    from dpt.detect.registry import open_detector
    from dpt.score.clip import Clip

    assert suite.detect_config is not None
    if name != ORACLE:
        if colours and suite.detect_config.coloured:
            fail(f"the suite {suite.name} has colours in its queries: --colours has no effect")
        if not colours and suite.needs_colours and not suite.detect_config.coloured:
            fail(f"the suite {suite.name} has claims about colours, which this detector does not read: pass --colours")
    return open_detector(name, suite.detect_config, Clip.open(clip_location(colours)) if colours else None)


def open_extra_scores(suite: Suite, clip: str | None, itm: Path | None, model: str, hps: str | None) -> ExtraScores:
    from dpt.evaluation.bench.judging import ExtraScores
    from dpt.score.preference import open_preference_model

    preference = None if hps is None else open_preference_model(clip_location(hps))
    return ExtraScores(_open_clip(clip, suite), _open_matching(itm, model), preference)


def _open_matching(folder: Path | None, model: str) -> MatchingScorer | None:
    """Open the checkpoint's adapter on the model it was trained with: with the checkpoint's LoRA, if any."""
    if folder is None:
        return None
    from dpt.backbone import open_backbone
    from dpt.checkpoints import open_checkpoint
    from dpt.score.matching import MatchingScorer
    from dpt.weights import content_hash

    checkpoint = open_checkpoint(folder)
    if checkpoint.adapter is None:
        fail(f"--itm {folder} has no adapter")
    backbone = open_backbone(model_location(model), dtype="float32")
    if lora := checkpoint.attach(backbone):
        lora.merge()
    digest = content_hash({**checkpoint.adapter.state_dict(), **(checkpoint.lora.tensors if checkpoint.lora else {})})
    return MatchingScorer(backbone, checkpoint.adapter, f"adapter {folder.resolve().name} {digest[:12]}")


def _open_clip(name: str | None, suite: Suite) -> Clip | None:
    if name is None:
        return None
    from dpt.score.clip import Clip

    clip = Clip.open(clip_location(name))
    if truncated := clip.count_truncated([prompt.text for prompt in suite.prompts]):
        total = len(suite.prompts)
        warn(f"{truncated} of {total} prompts exceed the context of {clip.identity} and are truncated for the score")
    return clip


def judge_identity(suite: Suite, judge: ImageJudge) -> dict[str, str]:
    """Everything but the image that a verdict depends on; part of the method's entry in bench.json."""
    identity = {"detector": judge.detector.identity if judge.detector else NO_DETECTOR, "suite": suite.id}
    if suite.judge:
        identity["judge"] = suite.judge
    return {**identity, **judge.extra_scores.identities, "suite_hash": suite.hash}
